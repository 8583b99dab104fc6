"""Low-RSS mode of ONNX Runtime: packed weights in a file, whose mapped pages the kernel may drop.

An engine re-orders ("pre-packs") weights for the processor, and keeps the copies in anonymous memory, which cannot be
dropped. ONNX Runtime can write them into a model of its own, and map that one: `session.
save_external_prepacked_constant_initializers` of its session options. The file is twice the module's size, made once in
the user's cache folder, for one processor and one version of the engine.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from edgeglm.errors import BudgetError, DamagedFileError
from edgeglm.large_entries import LARGER, find_or_make
from edgeglm.machine import processor_lines
from edgeglm.manifest import File
from edgeglm.runtimes.engines.ort.options import open_session

MODEL, WEIGHTS = "model.onnx", "weights.bin"
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
        UnsupportedError, BudgetError: As `find_or_make`.
    """
    room = int(GROWTH * sum(file.bytes for file in files.values()))
    entry = find_or_make(
        "prepacked", _key(files), lambda folder: _pack(path, folder, threads), "--low-rss", "the packed weights", room
    )
    return entry.folder / MODEL


def _key(files: Mapping[str, File]) -> str:
    """Return one name for a module's bytes, the engine's version and the processor."""
    parts = [f"{name} {file.sha256}" for name, file in sorted(files.items())]
    parts += [onnxruntime.__version__, platform.machine(), *processor_lines()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _pack(path: Path, folder: Path, threads: int) -> bytes:
    """Write the module as the engine has packed it, without a note."""
    entries = {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": WEIGHTS,
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    }
    try:
        open_session(path, threads, entries, save_to=folder / MODEL)
    except DamagedFileError as error:
        if UNWRITTEN not in error.why:
            raise
        raise BudgetError("--low-rss", f"the packed weights cannot be written in {folder.parent}", LARGER) from error
    return b""
