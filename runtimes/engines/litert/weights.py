"""The weights that XNNPACK has packed for LiteRT, in a file whose mapped pages the kernel may drop.

Without the file every signature has a packed copy of its own in anonymous memory. It is made by the first start in the
user's cache folder, for one processor and one version of the engine, and used only as it was made.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from edgeglm.bundle import Bundle
from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError
from edgeglm.large_entries import find_or_make
from edgeglm.machine import processor_lines
from edgeglm.manifest import Module
from edgeglm.runtimes.engines.litert.file import File, check_library, version

WEIGHTS = "weights.bin"
# Of the file's bytes, the most that packing takes: fp32 is packed as it is, INT8 with sums of its rows.
GROWTH = 1.2


def litert_files(bundle: Bundle, module: Module, threads: int) -> list[File]:
    """Return the files of a module in the engine, in the order of computation. Raises as `File`."""
    check_library()
    compiled = module.compiled.file if module.compiled else None
    names = sorted(name for name in bundle.manifest.files if name.startswith(f"{module.name}/") and name != compiled)
    opened: list[File] = []
    try:
        for name in names:
            opened.append(open_packed(bundle, name, threads))
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


def open_packed(bundle: Bundle, name: str, threads: int) -> File:
    """Return a file in the engine, with its packed weights in the store; in memory where that has no room.

    The engine writes them while it opens the file, and keeps them mapped while they are renamed.

    Args:
        bundle: The bundle.
        name: The file's path in it.
        threads: Of each operator.

    Raises:
        DamagedFileError, UnsupportedError: As `File`.
    """
    path, described, opened = bundle.path(name), bundle.manifest.files[name], list[File]()

    def pack(folder: Path) -> bytes:
        opened.append(File(path, threads, folder / WEIGHTS))
        return b""

    try:
        entry = find_or_make(
            "litert", _key(described.sha256), pack, path, "the packed weights", int(GROWTH * described.bytes)
        )
    except (UnsupportedError, BudgetError, DamagedFileError):  # the last is also said where the disk became full
        return opened.pop() if opened else File(path, threads, None)
    return opened.pop() if entry.fresh else File(path, threads, entry.folder / WEIGHTS)


def _key(sha256: str) -> str:
    """Return one name for a file's bytes, the engine's version and the processor."""
    parts = (sha256, version(), platform.machine(), *processor_lines())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
