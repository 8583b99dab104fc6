"""The weights that XNNPACK has packed for LiteRT, in a file whose mapped pages the kernel may drop.

Without the file every signature has a packed copy of its own in anonymous memory. It is made by the first start in the
user's cache folder, for one processor and one version of the engine, and used only as it was made.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgeglm import store
from edgeglm.bundle import Bundle
from edgeglm.cache import cache_folder
from edgeglm.digest import KnownHashes
from edgeglm.machine import processor_lines
from edgeglm.manifest import Module
from edgeglm.runtimes.engines.litert.file import File, check_library, version

WEIGHTS, SUM = "weights.bin", "sum"
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
            with packed_weights(bundle, name) as weights:
                opened.append(File(bundle.path(name), threads, weights))
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


@contextmanager
def packed_weights(bundle: Bundle, name: str) -> Iterator[Path | None]:
    """Give the path at which the engine keeps a file's packed weights; None if there is no room."""
    file, root = bundle.manifest.files[name], cache_folder()
    if root is None:
        yield None
        return
    folder = root / "litert" / _key(file.sha256)
    if _is_whole(folder):
        yield folder / WEIGHTS
        return
    with ExitStack() as leave:
        try:
            partial = leave.enter_context(store.partial(folder))
            room = shutil.disk_usage(partial).free
        except OSError:  # a folder or disk that cannot be written
            room = 0
        if room < GROWTH * file.bytes:
            yield None
            return
        yield partial / WEIGHTS
        _publish(partial, folder)


def _key(sha256: str) -> str:
    """Return one name for a file's bytes, the engine's version and the processor."""
    parts = (sha256, version(), platform.machine(), *processor_lines())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _is_whole(folder: Path) -> bool:
    """Return whether the file is the one that was made; an unchanged one is not read again."""
    hashes = KnownHashes(folder)
    try:
        return hashes.sha256(folder / WEIGHTS) == (folder / SUM).read_text()
    except (OSError, ValueError):
        return False
    finally:
        hashes.save()


def _publish(partial: Path, folder: Path) -> None:
    """Rename it while the engine has it mapped, unless the disk is full or another process was faster."""
    with suppress(OSError):
        (partial / SUM).write_text(KnownHashes(partial, trust=False).sha256(partial / WEIGHTS))
        shutil.rmtree(folder, ignore_errors=True)  # of a damaged one
        os.rename(partial, folder)
