"""The engines that TensorRT built here, each made once and kept in the user's cache folder.

An engine fits one version of TensorRT, one kind of GPU and one graph with its weights. All of that is in the name of
its folder, ``engines/KEY``, so whatever changes it is built anew. A folder appears whole or not at all, and is used
only if the file in it is the one that was built.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgeglm.bundle import Bundle
from edgeglm.cache import cache_folder
from edgeglm.digest import KnownHashes
from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.machine import read_machine
from edgeglm.manifest import Module
from edgeglm.runtimes.core.generate import PREFILL_CHUNK
from edgeglm.runtimes.engines.tensorrt.builder import AGAIN, REMEDY, Range, Task
from edgeglm.runtimes.engines.tensorrt.library import Library
from edgeglm.units import format_size
from edgeglm.worker import Crashed, Worker

# Memory that the builder takes for a byte of weights: three (benchmarks/build_memory.py), less the file that it maps.
GROWTH = 2
ENGINE, RECORD = "engine.plan", "built.json"
SMALLER = "free memory, or export it in a smaller precision"
BUILDER = Worker("edgeglm.runtimes.engines.tensorrt.builder", type(None), "the builder", SMALLER)
# Of what stands in the folder and what the builder is asked for: an older engine is not used.
REVISION = 1


class Record(msgspec.Struct, frozen=True):
    """The record of a build: the file's hash and size, the builder, the GPU and the seconds that it took."""

    sha256: str
    bytes: int
    built_by: str
    sm: int
    seconds: float


@dataclass(frozen=True)
class Engine:
    """An engine that may be loaded; `fresh` if it was built just now."""

    path: Path
    record: Record
    fresh: bool


def engine_for(
    bundle: Bundle, module: Module, library: Library, sm: int, show: Callable[[float], None] = lambda _: None
) -> Engine:
    """Return the engine of a module, built if there is none yet; of two that start at once, one waits for the other.

    Args:
        bundle: Its files' hashes were checked.
        module: A module in the portable dialect.
        library: Which TensorRT.
        sm: The GPU's compute capability without the dot.
        show: Gets how much of the building is done, from 0 to 1.

    Raises:
        UnsupportedError: TensorRT refuses the module or the GPU, or there is no folder to keep engines in.
        DamagedFileError: The module cannot be read.
        BudgetError: Memory is too short for the builder, it was killed, or the disk is full.
    """
    ranges = input_ranges(bundle, module)
    _check_library(bundle, library, sm)
    folder = _root() / _key(bundle, module, library, sm, ranges)
    with _locked(folder) as lock:
        record = _read(folder)
        if record:
            return Engine(folder / ENGINE, record, fresh=False)
        _check_memory(bundle, module)
        with _partial(folder) as partial:
            task = Task(library.name, str(bundle.path(module.file)), sm, ranges, str(partial / ENGINE))
            start = time.monotonic()
            _build(task, show, [lock.fileno()])
            record = _record(partial, library, sm, time.monotonic() - start)
            _publish(partial, folder)
    return Engine(folder / ENGINE, record, fresh=True)


def input_ranges(bundle: Bundle, module: Module) -> dict[str, Range]:
    """Return the range of each input of which a dimension varies.

    The usual step is a whole chunk of a prompt behind half a context: a kernel chosen for many tokens reads each
    weight once for a single one too, while one chosen for a single token may read them again for each of many.

    Raises:
        UnsupportedError: A dimension has a name that says nothing.
    """
    longest = bundle.manifest.model.max_positions
    chunk = min(PREFILL_CHUNK, longest)
    sizes = {"sequence": (1, chunk, chunk), "past": (0, longest // 2, longest - 1)}
    sizes["total"] = tuple(map(sum, zip(*sizes.values(), strict=True)))  # type: ignore[assignment]
    ranges: dict[str, Range] = {}
    for tensor in module.inputs:
        names = [size for size in tensor.shape if isinstance(size, str)]
        for name in names:
            if name not in sizes:
                why = f"its input {tensor.name} has a dimension {name!r}, for which there is no range"
                raise UnsupportedError(bundle.path(module.file), why, AGAIN)
        if names:
            shapes = [
                tuple(sizes[size][k] if isinstance(size, str) else size for size in tensor.shape) for k in range(3)
            ]
            ranges[tensor.name] = (shapes[0], shapes[1], shapes[2])
    return ranges


def _check_library(bundle: Bundle, library: Library, sm: int) -> None:
    """Check that the library is as new as the device's profile asks, and builds for the GPU."""
    needed = bundle.manifest.profile.toolchain.tensorrt
    if library.name == "tensorrt" and needed and _numbers(library.version) < _numbers(needed.version.value):
        why = f"is older than the {needed.version.value} that {bundle.manifest.profile.name} asks for"
        raise UnsupportedError(library.title, why, "update JetPack, or export for this device's profile")
    if not library.builds_for(sm):
        why = f"{library.title} supports only {', '.join(map(str, library.compute_capabilities))}"
        raise UnsupportedError(f"compute capability {sm}", why, "give one of these with --sm")


def _check_memory(bundle: Bundle, module: Module) -> None:
    needed, there = GROWTH * bundle.manifest.module_bytes(module), read_machine().memory_available_bytes
    if needed > there:
        why = f"building its engine takes about {format_size(needed)}, and {format_size(there)} are available"
        raise BudgetError(bundle.path(module.file), why, SMALLER)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _root() -> Path:
    """Return the folder of all engines, which nobody else may write: an engine is code."""
    root = cache_folder()
    if root is None:
        raise UnsupportedError("engines", "there is no home folder to keep them in", "set XDG_CACHE_HOME")
    folder = root / "engines"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise UnsupportedError(folder, f"cannot be made: {error.strerror}", "set XDG_CACHE_HOME") from error
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsupportedError(folder, "others may write there", "set XDG_CACHE_HOME to a folder of your own")
    return folder


def _key(bundle: Bundle, module: Module, library: Library, sm: int, ranges: dict[str, Range]) -> str:
    """Return one name for a module's bytes, TensorRT's version, the GPU and the shapes."""
    files = bundle.manifest.files
    parts = [f"{name} {files[name].sha256}" for name in sorted(files) if name.startswith(f"{module.name}/")]
    parts += [
        f"{module.file} {REVISION} {library.name} {library.version} {sm}",
        msgspec.json.encode(ranges, order="sorted").decode(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@contextmanager
def _locked(folder: Path) -> Iterator[BinaryIO]:
    """Hold the lock of one engine; the kernel releases it if the holder is killed. The builder holds it too.

    Raises:
        UnsupportedError: The folder cannot be written.
    """
    try:
        lock = open(folder.with_suffix(".lock"), "ab")  # noqa: SIM115
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        raise UnsupportedError(folder.parent, why, "set XDG_CACHE_HOME to a writable folder") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(folder)
        yield lock


def _sweep(folder: Path) -> None:
    """Remove what killed builds of other engines left."""
    for partial in folder.parent.glob("*.partial"):
        if partial.stem != folder.name:
            with suppress(OSError), open(partial.with_suffix(".lock"), "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Make an empty folder beside it, without what a killed build left; remove it unless it was renamed."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(mode=0o700)
        yield partial
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise BudgetError(folder.parent, "no space is left", "free some") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(folder: Path) -> Record | None:
    """Return what is in the folder, if the engine is still the file that was built."""
    hashes = KnownHashes(folder)
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
        return record if hashes.sha256(folder / ENGINE) == record.sha256 else None
    except (OSError, msgspec.DecodeError):
        return None
    finally:
        hashes.save()


def _record(partial: Path, library: Library, sm: int, seconds: float) -> Record:
    engine = partial / ENGINE
    sha256 = KnownHashes(partial, trust=False).sha256(engine)
    record = Record(sha256, engine.stat().st_size, library.title, sm, round(seconds, 3))
    (partial / RECORD).write_bytes(msgspec.json.encode(record))
    return record


def _publish(partial: Path, folder: Path) -> None:
    for path in (partial / ENGINE, partial / RECORD, partial):
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)  # of a damaged one
    os.rename(partial, folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _build(task: Task, show: Callable[[float], None], pass_fds: Sequence[int] = ()) -> None:
    """Build in a process of its own, which finds edgeglm where this one did: a folder, or run.pyz."""
    try:
        BUILDER.run(task, task.graph, show, pass_fds)
    except Crashed as error:
        why = f"the builder of {task.library} ended with {error.status}: {error}"
        raise UnsupportedError(task.graph, why, REMEDY) from error


def try_build(task: Task) -> None:
    """Build once, in the builder's own process, and keep nothing but ``task.output``. Raises as `engine_for`."""
    _build(task, lambda done: None)
