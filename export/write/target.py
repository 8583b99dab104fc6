"""Check the folder that a bundle is to be put in."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from edgeglm.bundle import is_bundle
from edgeglm.errors import UsageError
from edgeglm.export.write.disk import explained


def check_target(target: Path) -> Path:
    """Return the resolved target, if a bundle may be put there. Raises UsageError."""
    try:
        resolved = Path(os.path.realpath(target))
    except ValueError as error:
        raise UsageError(repr(str(target)), f"is not a path: {error}", "give a folder") from error
    try:
        str(resolved).encode()
    except UnicodeEncodeError as error:
        why = "has a path that is not UTF-8, and engines open no such file"
        raise UsageError(resolved, why, "give another folder") from error
    with explained(target, resolved):
        if os.path.ismount(resolved):
            raise UsageError(target, "is a whole disk", "give a folder in it")
        if resolved.exists() and not resolved.is_dir():
            raise UsageError(target, "is a file", "give a folder")
        if resolved.exists() and not is_bundle(resolved) and any(resolved.iterdir()):
            raise UsageError(target, "exists and is not a bundle", "give a new folder")
        _check_replaceable(target, resolved)
        _check_room(partial_of(resolved))
    return resolved


def partial_of(target: Path) -> Path:
    """Return the folder in which a bundle is written."""
    return target.with_name(f"{target.name}.partial")


def _check_replaceable(target: Path, resolved: Path) -> None:
    """Raise UsageError where a bundle that is there could not be removed once the new one is whole."""
    for folder, _, _ in os.walk(resolved):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            why = f"is there, and {folder} cannot be removed: {os.strerror(errno.EACCES)}"
            raise UsageError(target, why, "remove it, or give a new folder")


def _check_room(partial: Path) -> None:
    """Raise the OSError that making a folder would end with: before any work is done, not behind it."""
    with suppress(FileNotFoundError):
        partial.lstat()  # a name that is too long, or below a file
        if not os.access(partial, os.R_OK | os.W_OK | os.X_OK):
            raise UsageError(
                partial, f"cannot be written: {os.strerror(errno.EACCES)}", "remove it, or give a new folder"
            )
    above = next(folder for folder in partial.parents if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        is_readonly = os.statvfs(above).f_flag & os.ST_RDONLY
        code = errno.EROFS if is_readonly else errno.EACCES
        raise OSError(code, os.strerror(code))
