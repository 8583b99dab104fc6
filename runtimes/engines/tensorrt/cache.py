"""The engines that TensorRT built here, each made once and kept in the user's cache folder.

An engine fits one version of TensorRT, one kind of GPU and one graph with its weights. All of that is in the name of
its folder, ``engines/KEY``, so whatever changes it is built anew. A folder appears whole or not at all, and is used
only if the file in it is the one that was built.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeglm.bundle import Bundle
from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.large_entries import find_or_make
from edgeglm.machine import read_machine
from edgeglm.manifest import TWO_OF_FOUR, Module
from edgeglm.runtimes.core.generate import PREFILL_CHUNK
from edgeglm.runtimes.engines.tensorrt.builder import AGAIN, REMEDY, Range, Task
from edgeglm.runtimes.engines.tensorrt.library import Library
from edgeglm.units import format_size
from edgeglm.worker import Crashed, Worker

# Memory that the builder takes for a byte of weights: three (benchmarks/build_memory.py), less the file that it maps.
GROWTH = 2
ENGINE = "engine.plan"
SMALLER = "free memory, or export it in a smaller precision"
BUILDER = Worker("edgeglm.runtimes.engines.tensorrt.builder", type(None), "the builder", SMALLER)
# Of what stands in the folder and what the builder is asked for: an older engine is not used.
REVISION = 2


class Record(msgspec.Struct, frozen=True):
    """The record of a build: the file's size, the builder, the GPU, the seconds, and if zeros may be skipped."""

    bytes: int
    built_by: str
    sm: int
    seconds: float
    sparse: bool = False


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
    path, sparse = bundle.path(module.file), bundle.manifest.provenance.is_two_of_four

    def make(folder: Path) -> bytes:
        _check_memory(bundle, module)
        start = time.monotonic()
        _build(Task(library.name, str(path), sm, ranges, str(folder / ENGINE), sparse), show)
        seconds = round(time.monotonic() - start, 3)
        return msgspec.json.encode(Record((folder / ENGINE).stat().st_size, library.title, sm, seconds, sparse))

    entry = find_or_make("engines", _key(bundle, module, library, sm, ranges), make, path, "its engine")
    return Engine(entry.folder / ENGINE, msgspec.json.decode(entry.note, type=Record), entry.fresh)


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


def _key(bundle: Bundle, module: Module, library: Library, sm: int, ranges: dict[str, Range]) -> str:
    """Return one name for a module's bytes, TensorRT's version, the GPU and the shapes."""
    files = bundle.manifest.files
    parts = [f"{name} {files[name].sha256}" for name in sorted(files) if name.startswith(f"{module.name}/")]
    parts += [
        f"{module.file} {REVISION} {library.name} {library.version} {sm}",
        msgspec.json.encode(ranges, order="sorted").decode(),
    ]
    parts += [TWO_OF_FOUR] if bundle.manifest.provenance.is_two_of_four else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _build(task: Task, show: Callable[[float], None]) -> None:
    """Build in a process of its own, which finds edgeglm where this one did: a folder, or run.pyz."""
    try:
        BUILDER.run(task, task.graph, show)
    except Crashed as error:
        why = f"the builder of {task.library} ended with {error.status}: {error}"
        raise UnsupportedError(task.graph, why, REMEDY) from error


def try_build(task: Task) -> None:
    """Build once, in the builder's own process, and keep nothing but ``task.output``. Raises as `engine_for`."""
    _build(task, lambda done: None)
