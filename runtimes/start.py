"""Start ``run.pyz``: it compares itself with the manifest beside it before it imports the rest of itself.

Python does not check what it imports from an archive. A flipped bit would be a traceback, or another program.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

NAME = "run.pyz"
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20


class DamagedError(Exception):
    """The archive is not the one that was exported."""


def main(wheels: str) -> int:
    """Run the bundle in whose folder the archive lies, and return the exit code.

    Args:
        wheels: What to install where a package is missing.

    Raises:
        DamagedError: The archive is not as the manifest says.
        Exception: Whatever importing from a damaged archive raises.
    """
    archive = Path(os.path.realpath(sys.argv[0]))
    try:
        expected = _expected(archive.with_name(MANIFEST))
        if expected is not None and hashlib.sha256(archive.read_bytes()).hexdigest() != expected:
            raise DamagedError(archive)
        with _compiled(expected):
            from edgeglm.runtimes.__main__ import main as run  # noqa: PLC0415 (only what was checked)

            return run(NAME, wheels, archive.parent)
    except KeyboardInterrupt:
        print("edgeglm: interrupted", file=sys.stderr)
        return 130


def _compiled(sha256: str | None) -> AbstractContextManager[None]:
    """Import the rest from compiled code, if the archive was checked and nothing that this needs is missing."""
    with suppress(ImportError):
        from edgeglm.runtimes.bytecode import compiled  # noqa: PLC0415 (only what was checked)

        if sha256 is not None:
            return compiled(sys.path[0], sha256)
    return nullcontext()


def _expected(manifest: Path) -> str | None:
    """Return the archive's hash; None where the manifest does not have it, which the program then says itself."""
    try:
        with open(os.open(manifest, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return str(json.loads(file.read(MAX_MANIFEST_BYTES + 1))["files"][NAME]["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
