"""The bundle in the making: it resumes after a kill, and replaces the bundle that was there when it is whole.

Beside the target stands ``TARGET.partial`` with ``bundle/`` (as far as it is written), ``journal`` and, in the
instant of the exchange, ``old/`` (the bundle that is replaced). It is locked while an export writes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Container
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import RLock
from types import TracebackType

import msgspec

from edgeglm.bundle import is_bundle
from edgeglm.errors import EdgeglmError, UsageError
from edgeglm.export.pack.disk import explained, lock_folder, make_folders, sync, sync_tree
from edgeglm.export.pack.journal import Journal, Record, read_journal
from edgeglm.export.pack.output import OutputFile
from edgeglm.manifest import MANIFEST, File, Sealed

# Finished jobs are brought to the disk, and count, once this much or this long has gathered.
BATCH_BYTES = 64 << 20
BATCH_SECONDS = 5.0
OURS = {"bundle", "journal", "old"}


class BundleWriter:
    """A bundle in the making, as a context manager inside which its methods may be called.

    Left without `finish`, the jobs that are done stay for the next run; if there are none, no trace stays.

    Args:
        target: The bundle's folder. A bundle or an empty folder there is replaced, anything else is refused.
        key: Everything that determines the bundle's bytes, hashed. A partial bundle of another key is thrown away.
        resume: Whether to go on from a partial bundle of the same key.

    Attributes:
        target: The folder, resolved.
        note: Why a partial bundle was thrown away, as a sentence for the user; else None.
        resumed_jobs: How many jobs an earlier run has done.

    Raises:
        UsageError: The target is something else, cannot be written, or is being written by another export.
        BudgetError: From any method: the disk is full.
    """

    def __init__(self, target: Path, key: str, *, resume: bool = True) -> None:
        self.target = check_target(target)
        self.note: str | None = None
        self.resumed_jobs = 0
        self._key, self._resume = key, resume
        self._partial = self.target.with_name(f"{self.target.name}.partial")
        self._bundle = self._partial / "bundle"
        self._outputs: dict[str, OutputFile] = {}
        self._small: dict[str, File] = {}
        self._record = Record(key)
        self._pending: list[str] = []
        self._mutex = RLock()
        self._finished = False

    def __enter__(self) -> BundleWriter:
        with ExitStack() as opened, explained(self.target, self._partial):
            self._made = make_folders(self._partial.parent)
            opened.callback(os.close, self._locked())
            self._recover()
            self._record = self._resumable() or self._record
            self.resumed_jobs = len(self._record.jobs)
            opened.callback(self._leave)
            self._clear()
            self._journal = Journal(self._partial / "journal", self._record)
            opened.callback(self._journal.close)
            sync(self._partial)
            sync(self._partial.parent)
            self._opened = opened.pop_all()
        self._committed_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened, suppress(EdgeglmError):  # the error that ended the work says more
            self._commit()

    def file(self, relative: str, size: int) -> OutputFile:
        """A file of that size to write into, with its space reserved; ask for it in a resumed run too."""
        known = self._record.sizes.get(relative)
        if known not in (None, size):
            raise ValueError(f"{relative}: has {known} bytes under this key already, not {size}")
        with explained(self.target / relative, self._partial):
            output = OutputFile(self._bundle / relative, self.target / relative, size, reserved=known is not None)
        self._opened.callback(output.close)
        with self._mutex:
            self._outputs[relative] = output
            if known is None:
                self._record.sizes[relative] = size
                self._pending.append(f"file {size} {relative}")
        return output

    def small(self, relative: str, data: bytes) -> None:
        """Write a whole file, in a resumed run again."""
        path = self._bundle / relative
        with explained(self.target / relative, self._partial, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self._small[relative] = File(hashlib.sha256(data).hexdigest(), len(data))

    def adopt(self, relative: str) -> None:
        """Take a whole file that lies at its path already, in a resumed run again."""
        path = self._bundle / relative
        with explained(self.target / relative, self._partial), open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256")
            self._small[relative] = File(digest.hexdigest(), path.stat().st_size)

    def done(self, job: str) -> bool:
        """Whether a job was completed, in this run or an earlier one."""
        return job in self._record.jobs

    def note_of(self, job: str) -> str:
        """What `complete` was told of a job, in this run or an earlier one."""
        return self._record.jobs[job]

    def path(self, relative: str) -> Path:
        """Where a file lies as long as the bundle is not finished."""
        return self._bundle / relative

    def complete(self, job: str, note: str = "") -> None:
        """State that all bytes of a job are written, with a note. It survives a kill from the next commit on."""
        with self._mutex:
            self._record.jobs[job] = note
            self._pending.append(f"job {job}\t{note}".rstrip())
            unsynced = sum(output.unsynced for output in self._outputs.values())
            if unsynced >= BATCH_BYTES or time.monotonic() - self._committed_at >= BATCH_SECONDS:
                self._commit()

    def finish(self, manifest: Sealed) -> Path:
        """Write the manifest with the hashes of all files, and put the bundle in its place, whose path is returned."""
        self._commit()
        files = {relative: output.entry() for relative, output in self._outputs.items()} | self._small
        self.small(MANIFEST, msgspec.structs.replace(manifest, files=files).to_bytes())
        with explained(self.target, self._partial):
            sync_tree(self._bundle)
            if is_bundle(check_target(self.target)):
                self.target.rename(self._partial / "old")
            self._bundle.rename(self.target)
            self._finished = True
            sync(self.target.parent)
            shutil.rmtree(self._partial)
        return self.target

    def _commit(self) -> None:
        """Bring to the disk what is written, and only then the statements that vouch for it."""
        with self._mutex, explained(self.target, self._partial):
            for output in self._outputs.values():
                if output.unsynced:
                    output.sync()
            if any(statement.startswith("file ") for statement in self._pending):
                sync_tree(self._bundle)
            if self._pending:
                self._journal.append(self._pending)
                self._pending.clear()
            self._committed_at = time.monotonic()

    def _locked(self) -> int:
        try:
            lock = lock_folder(self._partial)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(self._partial, "is in the way", "move it, or give another target") from error
        if lock is None:
            raise UsageError(self.target, "another export is writing it", "wait for it, or give another target")
        if not OURS.issuperset(os.listdir(self._partial)):
            os.close(lock)
            raise UsageError(self._partial, "holds what no export wrote", "move it, or give another target")
        return lock

    def _recover(self) -> None:
        """Put back, or remove, the bundle that a kill in the instant of the exchange left aside."""
        old = self._partial / "old"
        if old.exists():
            if not is_bundle(self.target):
                old.rename(self.target)
                sync(self.target.parent)
            else:
                shutil.rmtree(old)

    def _leave(self) -> None:
        """Keep the partial bundle if there is something in it to go on from, else remove every trace."""
        if self._finished:
            return
        self._recover()
        if not self._record.jobs or not self._bundle.exists():
            shutil.rmtree(self._partial, ignore_errors=True)
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()  # only where it is empty

    def _resumable(self) -> Record | None:
        try:
            record = read_journal(self._partial / "journal")
        except ValueError:
            record, self.note = None, "the partial bundle's journal is damaged: starting over"
        if record is None or not self._resume:
            return None
        if record.key != self._key:
            self.note = "the partial bundle is of another model, option or version: starting over"
        elif any(_size(self._bundle / relative) != size for relative, size in record.sizes.items()):
            self.note = "the partial bundle's files are not as its journal says: starting over"
        return None if self.note else record

    def _clear(self) -> None:
        """Remove what the journal does not vouch for."""
        if not self._record.length:
            shutil.rmtree(self._bundle, ignore_errors=True)
        self._bundle.mkdir(exist_ok=True)
        _keep_only(self._bundle, {self._bundle / relative for relative in self._record.sizes})


def check_target(target: Path) -> Path:
    """The resolved target, if a bundle may be put there. Raises UsageError."""
    try:
        resolved = Path(os.path.realpath(target))
    except ValueError as error:
        raise UsageError(repr(str(target)), f"is not a path: {error}", "give a folder") from error
    with explained(target, resolved):
        if os.path.ismount(resolved):
            raise UsageError(target, "is a whole disk", "give a folder in it")
        if resolved.exists() and not resolved.is_dir():
            raise UsageError(target, "is a file", "give a folder")
        if resolved.exists() and not is_bundle(resolved) and any(resolved.iterdir()):
            raise UsageError(target, "exists and is not a bundle", "give a new folder")
    return resolved


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None


def _keep_only(folder: Path, files: Container[Path]) -> None:
    for directory, _, names in os.walk(folder):
        for path in (Path(directory, name) for name in names):
            if path not in files:
                path.unlink()
