"""Write through the operating system, with its errors in a user's words."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeglm.errors import BudgetError, UsageError
from edgeglm.units import format_size

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(what: Path, place: int | Path, need: int = 0) -> Iterator[None]:
    """Turn an OSError while ``what`` is written at ``place`` into a BudgetError (no space) or a UsageError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            why = "a file of it may not become so large here"
            raise BudgetError(what, why, "allow the process larger files: ulimit -f") from error
        if error.errno in NO_SPACE:
            needed = f"needs {format_size(need)}" if need else "needs more space"
            why = f"{needed} where {format_size(_free(place))} is free: {error.strerror}"
            raise BudgetError(what, why, "free some, then run the same command to go on") from error
        why = f"cannot be written: {error.strerror or error}"
        raise UsageError(what, why, "give a folder on a writable disk") from error


def check_free(folder: Path, need: int, what: str, remedy: str) -> None:
    """Raise BudgetError where fewer bytes are free on a folder's disk than `what` needs for a while."""
    free = _free(folder)
    if need > free:
        why = f"needs {format_size(need)} of temporary disk where {format_size(free)} is free in {folder}"
        raise BudgetError(what, why, remedy)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and what it lies in; those that were not there are returned, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)
    return missing


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that `make_folders` made, as far as nothing is in them."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def lock_folder(folder: Path) -> int | None:
    """Make and lock a folder; return the descriptor that holds the lock, None while another process has it."""
    while True:
        folder.mkdir(exist_ok=True)
        # The process that had the lock may remove the folder at any step before we have it.
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
                    return os.dup(descriptor)
            except BlockingIOError:
                return None
            finally:
                os.close(descriptor)


def reserve(descriptor: int, size: int) -> None:
    """Give an empty file its size and its space on the disk; OSError, and no space taken, where there is too little."""
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.ftruncate(descriptor, 0)
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)


def write_all(descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write every byte, at an offset or at the end; a single call may write fewer."""
    view = memoryview(data)
    while view:
        count = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset = None if offset is None else offset + count


def sync(folder: Path) -> None:
    """Bring a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring the entries of a folder and of all folders in it to the disk."""
    for directory, _, _ in os.walk(folder):
        sync(Path(directory))


def _free(place: int | Path) -> int:
    """Return the bytes a user may still write on the disk of a file, or of the nearest folder that exists."""
    if isinstance(place, Path):
        place = next(path for path in (place, *place.parents) if path.exists())
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize
