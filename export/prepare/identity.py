"""Identify a checkpoint's weights: by their files, or by their bytes if the files were touched."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from edgeglm.digest import SETTLED_NS
from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.prepare.types import Prepared, PreparedModule
from edgeglm.export.quantize.stream import chunks


def job_name(module: PreparedModule, index: int) -> str:
    """Name the job that stores a weight of a module."""
    return f"{module.choice.name}/{index}"


def identify(checkpoint: Checkpoint) -> str:
    """Identify the files of a checkpoint's weights, by what the kernel changes whenever their bytes change.

    The kernel alone sets the change time (ctime), and a file that replaces another has its own inode. A file that has
    just changed could change again within one tick of its clock: it is like no other, nor like itself later.
    """
    now, said = time.time_ns(), []
    for file in _files(checkpoint):
        status = file.stat()
        settled = "" if now - status.st_ctime_ns > SETTLED_NS else f" at {now}"
        said.append(f"{_numbers(status)}{settled} {file.name}")
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def weights_sha256(prepared: Prepared, notes: Mapping[str, str]) -> str:
    """Hash name, dtype, shape and hash of every tensor that was read, sorted: sharding does not change it.

    `notes` are those of all jobs.
    """
    hashes: dict[str, str] = {}
    for module in prepared.modules:
        for index, job in enumerate(module.jobs):
            names = dict.fromkeys(job.stored.names)
            hashes |= dict(zip(names, notes[job_name(module, index)].split(), strict=True))
    digest = hashlib.sha256()
    for name, sha256 in sorted(hashes.items()):
        tensor = prepared.checkpoint.find(name)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {sha256}\n".encode())
    return digest.hexdigest()


class Unchanged:
    """The weights as they are now, which must be the same when all of them were read.

    Attributes:
        identity: Of all files, for as long as this process runs.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._before = _identities(prepared.checkpoint)
        self.identity = repr(self._before)

    def check(self, notes: Mapping[str, str]) -> None:
        """Check that nothing was exchanged meanwhile; `notes` are those of all jobs.

        Raises:
            DamagedFileError: A file has changed.
        """
        after = _identities(self._prepared.checkpoint)
        changed = next((file for file in self._before if after.get(file) != self._before[file]), None)
        if changed and not is_source_of(self._prepared, notes):
            raise DamagedFileError(changed, "changes while it is exported", "export again when it is whole")


def is_source_of(prepared: Prepared, notes: Mapping[str, str]) -> bool:
    """Return whether finished jobs were made from the weights as they are now; each is read again.

    Args:
        prepared: The export.
        notes: By job, the SHA-256 of each tensor that it read.
    """
    known: dict[str, str] = {}
    for module in prepared.modules:
        for index, job in enumerate(module.jobs):
            note = notes.get(job_name(module, index))
            if note is None:
                continue
            digests = {name: hashlib.sha256() for name in job.stored.names if name not in known}
            for chunk in chunks(job.stored, prepared.checkpoint) if digests else ():
                if chunk.origin in digests:
                    raw = prepared.checkpoint.read_bytes(chunk.origin, chunk.begin, chunk.end)
                    digests[chunk.origin].update(raw.data)
            known |= {name: digest.hexdigest() for name, digest in digests.items()}
            if note.split() != [known[name] for name in dict.fromkeys(job.stored.names)]:
                return False
    return True


def _files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({file for tensor in checkpoint.tensors.values() for file in tensor.files})


def _identities(checkpoint: Checkpoint) -> dict[Path, str]:
    """Identify each file; one that is gone is like no other."""
    return {file: _numbers(file.stat()) if file.exists() else "" for file in _files(checkpoint)}


def _numbers(status: os.stat_result) -> str:
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, numbers))
