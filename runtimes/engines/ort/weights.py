"""Low-RSS mode of ONNX Runtime: packed weights in a file, whose mapped pages the kernel may drop.

An engine re-orders ("pre-packs") weights for the processor, and keeps the copies in anonymous memory, which cannot be
dropped. ONNX Runtime can write them into a model of its own, and map that one: `session.
save_external_prepacked_constant_initializers` of its session options. The file is twice the module's size, made once in
the user's cache folder, for one processor and one version of the engine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import onnxruntime

from edgeglm import store
from edgeglm.cache import cache_folder
from edgeglm.digest import KnownHashes
from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError
from edgeglm.exits import DISK_IS_FULL
from edgeglm.machine import processor_lines
from edgeglm.manifest import File
from edgeglm.runtimes.engines.ort.options import open_session
from edgeglm.units import format_size

MODEL, WEIGHTS, SUMS = "model.onnx", "weights.bin", "sums.json"
UNWRITTEN = "Failed to write"  # of ONNX Runtime
# Of the module's bytes: the packed weights, and those that are kept as they were.
GROWTH = 2.2


def prepacked(path: Path, files: Mapping[str, File], threads: int) -> Path:
    """Return the engine's own file of a module, made if it is not there yet.

    Args:
        path: The module's graph.
        files: The module's files by name, from the manifest.
        threads: Of the session that packs.

    Raises:
        UnsupportedError: There is no cache folder to keep it in, or it cannot be written.
        BudgetError: The disk has no room for it.
    """
    root = cache_folder()
    if root is None:
        raise UnsupportedError("--low-rss", "there is no home folder for the packed weights", "set XDG_CACHE_HOME")
    folder = root / "prepacked" / _key(files)
    if not _is_whole(folder):
        try:
            _make(path, folder, int(GROWTH * sum(file.bytes for file in files.values())), threads)
        except OSError as error:
            if error.errno in DISK_IS_FULL:
                raise
            why = f"the packed weights cannot be kept in {folder.parent}: {error.strerror}"
            raise UnsupportedError("--low-rss", why, "set XDG_CACHE_HOME to a writable folder") from error
    return folder / MODEL


def _key(files: Mapping[str, File]) -> str:
    """Return one name for a module's bytes, the engine's version and the processor."""
    parts = [f"{name} {file.sha256}" for name, file in sorted(files.items())]
    parts += [onnxruntime.__version__, platform.machine(), *processor_lines()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _is_whole(folder: Path) -> bool:
    """Return whether the files are those that were made; an unchanged one is not read again."""
    hashes = KnownHashes(folder)
    try:
        sums = msgspec.json.decode((folder / SUMS).read_bytes(), type=dict[str, str])
        return sums.keys() == {MODEL, WEIGHTS} and all(
            hashes.sha256(folder / name) == sum_ for name, sum_ in sums.items()
        )
    except (OSError, msgspec.DecodeError):
        return False
    finally:
        hashes.save()


def _make(path: Path, folder: Path, room: int, threads: int) -> None:
    try:
        _pack(path, folder, room, threads)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise BudgetError("--low-rss", f"no space is left in {folder.parent}", "free some of the disk") from error
        why = f"the packed weights cannot be kept in {folder.parent}: {error.strerror or error}"
        raise UnsupportedError("--low-rss", why, "set XDG_CACHE_HOME to a writable folder") from error


def _pack(path: Path, folder: Path, room: int, threads: int) -> None:
    with store.partial(folder) as partial:
        if (free := shutil.disk_usage(partial).free) < room:
            why = f"the packed weights take about {format_size(room)}, and {folder.parent} has {format_size(free)}"
            raise BudgetError("--low-rss", why, "free some of the disk, or set XDG_CACHE_HOME to a larger one")
        entries = {
            "session.save_external_prepacked_constant_initializers": "1",
            "session.optimized_model_external_initializers_file_name": WEIGHTS,
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        try:
            open_session(path, threads, entries, save_to=partial / MODEL)
        except DamagedFileError as error:
            if UNWRITTEN not in error.why:
                raise
            why = f"the packed weights cannot be written in {folder.parent}"
            raise BudgetError(
                "--low-rss", why, "free some of the disk, or set XDG_CACHE_HOME to a larger one"
            ) from error
        hashes = KnownHashes(partial, trust=False)
        sums = {name: hashes.sha256(partial / name) for name in (MODEL, WEIGHTS)}
        (partial / SUMS).write_bytes(msgspec.json.encode(sums))
        shutil.rmtree(folder, ignore_errors=True)  # of a damaged one
        with suppress(OSError):  # another process was faster
            os.rename(partial, folder)
