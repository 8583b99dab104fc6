"""Check the folder that a bundle is to be put in."""

from __future__ import annotations

import os
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
    return resolved
