"""SHA-256 of files in bounded memory, and the memory of what was hashed before.

A start-up must not hash gigabytes again. What was hashed is remembered in the user's cache folder under the file's
identity: path, device, inode, size, and the times of its last change. The kernel alone sets the change time (ctime),
so content that was replaced under its old modification time is hashed again too.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeglm.cache import cache_folder

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 20
MAX_CACHE_BYTES = 4 << 20
# A second change within one tick of the file system's clock leaves the identity as it was.
SETTLED_NS = 2 * 10**9
READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def hash_range(digest: _Hash, descriptor: int, start: int, end: int) -> None:
    """Feed the bytes from ``start`` to ``end`` of an open file to ``digest``, at most 1 MiB at a time.

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


class KnownHashes:
    """The hashes of one folder's files: looked up when the file is the one hashed before, else computed.

    Args:
        folder: The folder, whose resolved path names its cache file.
        trust: Whether to believe what was remembered; if not, every file is hashed, and then remembered.
    """

    def __init__(self, folder: Path, *, trust: bool = True) -> None:
        self._cache = _cache_file(folder)
        self._known = _read(self._cache) if trust and self._cache else {}
        self._seen: dict[str, str] = {}

    def sha256(self, path: Path) -> str:
        """The hash of a regular file that is not a symlink, in hexadecimal.

        Raises:
            OSError: The file cannot be read, or changes while it is.
        """
        descriptor = os.open(path, READ_ONLY)
        try:
            identity = _identity(path, descriptor)
            known = self._known.get(identity) or _hash(path, descriptor, identity)
            if time.time_ns() - os.fstat(descriptor).st_ctime_ns > SETTLED_NS:
                self._seen[identity] = known
            return known
        finally:
            os.close(descriptor)

    def save(self) -> None:
        """Remember the hashes for the next time; where that is not possible, do without."""
        if self._cache and self._seen != self._known:
            with suppress(OSError):
                _write(self._cache, msgspec.json.encode(self._seen))


def _identity(path: Path, descriptor: int) -> str:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("is not a regular file")
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return f"{':'.join(map(str, numbers))}:{path}"


def _hash(path: Path, descriptor: int, identity: str) -> str:
    digest = hashlib.sha256()
    hash_range(digest, descriptor, 0, os.fstat(descriptor).st_size)
    if _identity(path, descriptor) != identity:
        raise OSError("changes while it is read")
    return digest.hexdigest()


def _cache_file(folder: Path) -> Path | None:
    """The cache file of a folder, or None where the user has no home."""
    cache = cache_folder()
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    return cache / "verified" / f"{name}.json" if cache else None


def _read(cache: Path) -> dict[str, str]:
    """What the cache file says, or nothing if it is damaged or anyone else could have written it."""
    with suppress(OSError, msgspec.DecodeError):
        descriptor = os.open(cache, READ_ONLY)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            private = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if private and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_CACHE_BYTES:
                return msgspec.json.decode(file.read(MAX_CACHE_BYTES), type=dict[str, str])
    return {}


def _write(cache: Path, data: bytes) -> None:
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = cache.with_suffix(f".{os.getpid()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)
