"""Folders for what is needed for a while, in the system's place for temporary files.

A process that is killed cannot remove its own. So each folder is locked by its process, a lock that the kernel takes
back, and the next process that makes one removes those that nobody holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeglm.store import PARTIAL, locked_folder, sweep_once

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
    folder, lock = locked_folder(lambda: Path(tempfile.mkdtemp(PARTIAL, f"{PREFIX}{kind}-")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
