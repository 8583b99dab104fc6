"""Folders for what is needed for a while, in the system's place for temporary files.

A process that is killed cannot remove its own. So each folder is locked by its process, a lock that the kernel takes
back, and the next process that makes one removes those that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeglm.store import PARTIAL, sweep_once

PREFIX = "edgeglm-"


@contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """Yield a new folder that is gone afterwards.

    Args:
        kind: A word for what it holds, which is part of its name.

    Raises:
        OSError: It cannot be made.
    """
    sweep_once(Path(tempfile.gettempdir()), PREFIX)
    folder, lock = _make(kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(kind: str) -> tuple[Path, int]:
    """Return a folder and its lock; one that a sweep met before the lock was held is made anew."""
    while True:
        folder = Path(tempfile.mkdtemp(PARTIAL, f"{PREFIX}{kind}-"))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = folder.exists()
            except BlockingIOError:
                is_held = False
            except OSError:  # a file system without locks, which no sweep can lock either
                is_held = True
            if is_held:
                return folder, lock
            os.close(lock)
