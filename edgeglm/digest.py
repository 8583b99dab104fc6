"""SHA-256 of files in bounded memory, and the memory of what was hashed before.

A start-up must not hash gigabytes again, and must not believe what may have changed. So a file of up to 64 MiB is
hashed every time. The hash of a larger one is remembered in the user's cache folder under the file's identity: path,
device, inode, size, and the times of its last change. The kernel alone sets the change time (ctime), with one
exception: a write through a shared map into a page that was dirty already. So the file is written back first, after
which the next such write sets it too, and only file systems are trusted of which that is known.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgeglm import store

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 20
# Up to here a hash is computed at every start, in about a tenth of a second.
ALWAYS_BYTES = 64 << 20
# Where a write sets the change time of a file that was written back, also through a map; or where none is possible.
TRUSTED = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "squashfs", "erofs"}
# Behind its last change, when a file has been written back anyway, and to ask for it takes no time.
WRITTEN_BACK_NS = 60 * 10**9
KIND, HASHES = "verified", "hashes.json"
# A second change within one tick of the file system's clock leaves the identity as it was.
SETTLED_NS = 2 * 10**9
READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def hash_range(digest: _Hash, descriptor: int, start: int, end: int) -> None:
    """Feed a range of an open file to a hash, at most 1 MiB at a time.

    Args:
        digest: Of hashlib.
        descriptor: The file's.
        start: The first byte.
        end: The byte behind the last one.

    Raises:
        OSError: The file cannot be read, or ends before ``end``.
    """
    buffer = memoryview(bytearray(min(CHUNK, max(end - start, 0))))
    while start < end:
        count = os.preadv(descriptor, [buffer[: end - start]], start)
        if not count:
            raise OSError(f"ends at byte {start} instead of {end}")
        digest.update(buffer[:count])
        start += count


class Identity(NamedTuple):
    """The kernel's facts of a file; they differ as soon as it changes."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return the identity of the file with that status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether a change that comes now would be seen: two in one tick of the file system's clock are one."""
        return abs(time.time_ns() - self.changed_ns) > SETTLED_NS


class Hashed(NamedTuple):
    """A file's hash and what the file was; a change of one that was not settled might not be seen."""

    sha256: str
    identity: Identity
    is_settled: bool


class KnownHashes:
    """The hashes of one folder's files: looked up when a large file is the one hashed before, else computed.

    Args:
        folder: The folder, whose resolved path names its cache file.
        trust: Whether to believe what was remembered; if not, every file is hashed, and then remembered.
    """

    def __init__(self, folder: Path, *, trust: bool = True) -> None:
        self._name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
        self._known = _remembered(self._name) if trust else {}
        self._seen: dict[str, str] = {}

    def sha256(self, path: Path) -> str:
        """Return the hash of a regular file that is not a symlink, in hexadecimal.

        Raises:
            OSError: The file cannot be read, or changes while it is.
        """
        return self.hash_file(path).sha256

    def hash_file(self, path: Path) -> Hashed:
        """Return the same, with what the file was. Raises as `sha256`."""
        descriptor = os.open(path, READ_ONLY)
        try:
            may_remember = _may_remember(path, descriptor)
            identity = _identity(descriptor)
            is_settled, key = identity.is_settled, f"{':'.join(map(str, identity))}:{path}"
            known = (self._known.get(key) if may_remember else None) or _hash(descriptor, identity)
            if may_remember and is_settled:
                self._seen[key] = known
            return Hashed(known, identity, is_settled)
        finally:
            os.close(descriptor)

    def save(self) -> None:
        """Remember the hashes for the next time; where that is not possible, do without."""
        if self._seen != self._known:
            store.keep(KIND, self._name, {HASHES: msgspec.json.encode(self._seen)})


def _identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("is not a regular file")
    return Identity.of(status)


def _hash(descriptor: int, identity: Identity) -> str:
    digest = hashlib.sha256()
    hash_range(digest, descriptor, 0, identity.size)
    if _identity(descriptor) != identity:
        raise OSError("changes while it is read")
    return digest.hexdigest()


def _may_remember(path: Path, descriptor: int) -> bool:
    """Return whether no change of the file goes unseen from now on; a large one is written back for that."""
    identity = _identity(descriptor)
    if identity.size <= ALWAYS_BYTES or abs(time.time_ns() - identity.changed_ns) < WRITTEN_BACK_NS:
        return False
    if _file_system(path) not in TRUSTED:
        return False
    try:
        os.fsync(descriptor)
    except OSError as error:
        return error.errno in (errno.EINVAL, errno.EROFS)  # nothing can be written there
    return True


def _file_system(path: Path) -> str:
    """Return the type of the file system that a path is on, as Linux calls it; empty if that is not known."""
    longest, kind = "", ""
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:  # proc(5): the fifth field is the mount point, the first behind the dash its type
            fields, _, rest = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
            if len(point) >= len(longest) and path.is_relative_to(point):
                longest, kind = point, rest.split()[0]
    return kind


def _remembered(name: str) -> dict[str, str]:
    found = store.find(KIND, name)
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode((found or {}).get(HASHES, b"{}"), type=dict[str, str])
    return {}
