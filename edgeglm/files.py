"""Opening a file that the user names: a regular one, of bounded size, or a line that says why not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgeglm.errors import UsageError
from edgeglm.units import format_size


@contextmanager
def opened(file: Path, remedy: str, limit: int | None = None) -> Iterator[BinaryIO]:
    """Yield a file to be read; what the system refuses meanwhile is a line too.

    Args:
        file: Of the user's.
        remedy: What to give instead.
        limit: Of its size in bytes.

    Raises:
        UsageError: It is not there, no regular file (a pipe or a device never ends), too large, not the
            text in UTF-8 that it is read as, or cannot be read.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if limit is not None and size > limit:
                why = f"has {format_size(size)}, and up to {format_size(limit)} are read"
                raise UsageError(file, why, remedy)
            yield stream
    except UnicodeDecodeError as error:
        raise UsageError(file, "is not UTF-8 text", remedy) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(file, f"cannot be read: {why}", remedy) from error


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file. Raises OSError for anything else, at once: it never waits for a writer of a pipe."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return open(descriptor, "rb")


def read_bytes(file: Path, remedy: str, limit: int) -> bytes:
    """Read a whole file. Raises as `opened`."""
    with opened(file, remedy, limit) as stream:
        return stream.read(limit)
