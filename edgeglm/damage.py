"""Files of a bundle that are not as its manifest says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeglm.digest import Hashed, KnownHashes
from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.manifest import MANIFEST, File, Sealed

RESTORE = "copy the bundle again from where it was exported, or export it again"
ALLOW = "make it readable"


@dataclass(frozen=True)
class Damage:
    """A file that is not as the manifest says, or that this user may not read.

    Args:
        file: Relative to the bundle.
        why: What is wrong with it.
        is_denied: Whether it may not be read.
    """

    file: str
    why: str
    is_denied: bool = False

    def error(self, folder: Path) -> UsageError | DamagedFileError:
        """Return the error for it, in the bundle's folder."""
        file = folder / self.file
        return UsageError(file, self.why, ALLOW) if self.is_denied else DamagedFileError(file, self.why, RESTORE)


def find_damage(folder: Path, manifest: Sealed, *, trust_memory: bool = True) -> Iterator[Damage]:
    """Yield every file that is not as the manifest says, in the manifest's order."""
    root = Path(os.path.realpath(folder))
    yield from hash_all(root, manifest, KnownHashes(root, trust=trust_memory), {})


def hash_all(root: Path, manifest: Sealed, hashes: KnownHashes, verified: dict[str, Hashed]) -> Iterator[Damage]:
    """Yield what is wrong with the files at a real path; `verified` gets the identities of those that are whole."""
    for relative, file in manifest.files.items():
        if fault := look(root, relative, file) or hash_one(root, relative, file, hashes, verified):
            yield fault
    hashes.save()


def extra_files(folder: Path, manifest: Sealed) -> list[str]:
    """Return what lies in the folder, relative to it, and is not in the manifest."""
    found = []
    for directory, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(directory, name))]
        found += [Path(directory, name).relative_to(folder).as_posix() for name in names + links]
    return sorted(set(found) - manifest.files.keys() - {MANIFEST})


def look(root: Path, relative: str, file: File) -> Damage | None:
    """Return what is wrong with a file, short of its content."""
    try:
        real = Path(os.path.realpath(root / relative, strict=True))
        status = real.stat()
    except (OSError, ValueError) as error:
        return _unread(relative, error)
    if not real.is_relative_to(root):
        return Damage(relative, "is a link that leaves the bundle")
    if not stat.S_ISREG(status.st_mode):
        return Damage(relative, "is not a regular file")
    if status.st_size != file.bytes:
        return Damage(relative, f"has {status.st_size} bytes instead of {file.bytes}")
    return None


def hash_one(root: Path, relative: str, file: File, hashes: KnownHashes, verified: dict[str, Hashed]) -> Damage | None:
    """Return what is wrong with a file's content; `verified` gets its identity where it is whole."""
    verified.pop(relative, None)
    try:
        hashed = hashes.hash_file(Path(os.path.realpath(root / relative)))
    except OSError as error:
        return _unread(relative, error)
    if hashed.sha256 != file.sha256:
        return Damage(relative, "is damaged or was changed: its SHA-256 is not the manifest's")
    verified[relative] = hashed
    return None


def _unread(relative: str, error: Exception) -> Damage:
    if isinstance(error, FileNotFoundError):
        return Damage(relative, "is missing")
    why = (error.strerror if isinstance(error, OSError) else None) or error
    return Damage(relative, f"cannot be read: {why}", isinstance(error, PermissionError))
