"""Store results that can be made again in the cache folder, under a hash of their inputs; verified when read.

An entry appears whole or not at all, and its bytes and its name are compared with its checksum each time: a damaged one
is made again. A folder that is none, cannot be written or is full means doing without. What a killed process left is
removed by the next one: whoever makes something holds a lock on it, which the kernel takes back. Files that are too
large to be read into memory are in `large_entries`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from edgeglm.cache import cache_folder

PARTIAL = ".partial"
MAX_BYTES = 1 << 28
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIGEST = hashlib.sha256().digest_size
# What no folder could take, for as long as this process runs.
_kept_here: dict[tuple[str, str], dict[str, bytes]] = {}
_swept: set[Path] = set()


def find(kind: str, key: str) -> dict[str, bytes] | None:
    """Read the files of an entry; None where there is none, or a damaged one, or one that another user may change."""
    folder = cache_folder()
    if folder:
        sweep_once(folder / kind)
        files = unseal(read_private(folder / kind / key), kind, key)
        if files is not None:
            return files
    return _kept_here.get((kind, key))


def keep(kind: str, key: str, files: Mapping[str, bytes]) -> None:
    """Keep an entry; where no folder takes it, for this process alone."""
    folder = cache_folder()
    try:
        if folder is None:
            raise FileNotFoundError
        publish(folder / kind / key, seal(files, kind, key))
    except OSError:
        _kept_here[kind, key] = dict(files)


def seal(files: Mapping[str, bytes], kind: str, key: str) -> bytes:
    """Return the bytes of an entry, behind their checksum with its name."""
    data = msgspec.msgpack.encode(files)
    return _checksum(data, kind, key) + data


def unseal(data: bytes, kind: str, key: str) -> dict[str, bytes] | None:
    """Return the files of an entry; None if its bytes or its name are not those that were sealed."""
    if _checksum(data[_DIGEST:], kind, key) != data[:_DIGEST]:
        return None
    with suppress(msgspec.DecodeError):
        return msgspec.msgpack.decode(data[_DIGEST:], type=dict[str, bytes])
    return None


@contextmanager
def making(kind: str, key: str) -> Iterator[None]:
    """Hold an entry while it is made: another process that wants to make it waits, and then finds it.

    Where no folder can be written, or the other one was killed, nobody waits.
    """
    folder = cache_folder()
    place = folder / kind / f"{key}{PARTIAL}" if folder else None
    lock = _lock(place) if place else None
    try:
        yield
    finally:
        if place and lock is not None:
            with suppress(OSError):
                place.unlink()
            os.close(lock)


@contextmanager
def partial(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, to be renamed to it when it is whole; else it is gone afterwards.

    Raises:
        OSError: The folder in which it lies cannot be made or written.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep_once(target.parent)
    place = target.with_name(f"{target.name}.{os.getpid()}{PARTIAL}")

    def make() -> Path:
        remove(place)  # of a dead process of our number
        place.mkdir(mode=0o700)
        return place

    folder, lock = locked_folder(make)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def locked_folder(make: Callable[[], Path]) -> tuple[Path, int]:
    """Return a folder and its lock, which a sweep respects; one that a sweep met before it was locked is made anew."""
    while True:
        folder = make()
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = folder.exists()
            except BlockingIOError:
                is_held = False
            except OSError:  # a file system without locks, which no sweep can lock either
                is_held = True
            if is_held:
                return folder, lock
            os.close(lock)


def sweep(folder: Path, prefix: str = "") -> None:
    """Remove the partial files and folders of that prefix whose process is no more."""
    names: list[str] = []
    with suppress(OSError, ValueError):
        names = os.listdir(folder)
    for path in (folder / name for name in names if name.startswith(prefix) and name.endswith(PARTIAL)):
        with suppress(OSError):
            lock = os.open(path, READ)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(lock).st_mode):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            finally:
                os.close(lock)


def sweep_once(folder: Path, prefix: str = "") -> None:
    """Remove them the first time that this process asks for it."""
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder, prefix)


def is_private(status: os.stat_result) -> bool:
    """Return whether a file or folder is this user's, and no other may write it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def read_private(file: Path) -> bytes:
    """Return the bytes of a file that nobody else could have written, at most 256 MiB, else none."""
    with suppress(OSError, ValueError), open(os.open(file, READ), "rb") as opened:
        status = os.fstat(opened.fileno())
        if is_private(status) and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
            return opened.read(status.st_size)
    return b""


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there and can be."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def publish(file: Path, *pieces: bytes | memoryview) -> None:
    """Write the bytes of some pieces as a file that appears whole, or not at all. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")
    temporary.unlink(missing_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "wb") as opened:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for piece in pieces:
                opened.write(piece)
        if file.is_dir():  # of an earlier version
            remove(file)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(data: bytes, kind: str, key: str) -> bytes:
    return hashlib.sha256(f"{kind}/{key}\n".encode() + hashlib.sha256(data).digest()).digest()


def _lock(place: Path) -> int | None:
    """Return a locked file of that name; None where none can be made or locked."""
    while True:
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except (OSError, ValueError):
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(lock), os.lstat(place)):
                return lock
        except FileNotFoundError:  # whoever held it removed it
            pass
        except OSError:  # a file system without locks
            os.close(lock)
            return None
        except BaseException:  # an interrupt while it waits
            os.close(lock)
            raise
        os.close(lock)
