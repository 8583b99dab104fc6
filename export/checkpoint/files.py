"""Reading files that may be anything: what is wrong with one is a line for the user."""

from __future__ import annotations

import json
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError, UsageError

# Python takes some 16 bytes for each of a header's. Those of real models, all shards together, stay below 1 MB.
MAX_JSON_BYTES = 8 << 20
MAX_NAME = 512
# A small text file in place of a large one.
POINTER = b"version https://git-lfs"
AGAIN = "download it again"


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises DamagedFileError or UsageError, naming the file."""
    with opened(file) as fd:
        size = os.fstat(fd).st_size
        if size > MAX_JSON_BYTES:
            raise DamagedFileError(file, f"has {size} bytes, too many for such a file", AGAIN)
        return parse(file, "content", read(fd, 0, size).tobytes())


def parse(file: Path, what: str, text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text`, the `what` of a file. Raises DamagedFileError for anything else."""
    refuse_pointer(file, text)
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(file, f"its {what} is not valid JSON: {error}", AGAIN) from error
    if not isinstance(value, dict):
        raise DamagedFileError(file, f"its {what} is not a JSON object", AGAIN)
    return value


def refuse_pointer(file: Path, start: bytes) -> None:
    """Raise DamagedFileError for a file that begins as a pointer of Git LFS does."""
    if start.startswith(POINTER):
        raise DamagedFileError(file, "is a Git LFS pointer, not the file itself", "run git lfs pull there")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has {shown(name)} twice")
    return unique


def shown(name: str) -> str:
    """Return a name as it is if a line of text can hold it."""
    return name if name.isprintable() and len(name) <= MAX_NAME else reprlib.repr(name)


@contextmanager
def opened(file: Path) -> Iterator[int]:
    """Yield a descriptor of a regular file; what the system refuses meanwhile is one line to the user."""
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DamagedFileError(file, "is not a regular file", AGAIN)
            yield fd
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise DamagedFileError(file, "is missing, or a link to nothing", AGAIN) from error
    except OSError as error:
        raise UsageError(file, f"cannot be read: {error.strerror}", "make it readable") from error


def read(fd: int, offset: int, size: int) -> NDArray[np.uint8]:
    """Return the bytes at an offset, fewer where the file ends before."""
    data = np.empty(size, np.uint8)
    done = 0
    # One call reads 2 GiB at most on Linux.
    while count := os.preadv(fd, [data.data[done:]], offset + done):
        done += count
    return data[:done]
