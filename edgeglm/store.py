"""Store results that can be made again in the cache folder, under a hash of their inputs; verified when read.

An entry appears whole or not at all, and its bytes are compared with their checksum each time: a damaged one is made
again. A folder that is none, cannot be written or is full means doing without. What a killed process left is removed
by the next one: whoever makes something holds a lock on it, which the kernel takes back.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
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
        data = _read(folder / kind / key)
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            with suppress(msgspec.DecodeError):
                return msgspec.msgpack.decode(data[_DIGEST:], type=dict[str, bytes])
    return _kept_here.get((kind, key))


def keep(kind: str, key: str, files: Mapping[str, bytes]) -> None:
    """Keep an entry; where no folder takes it, for this process alone."""
    folder, data = cache_folder(), msgspec.msgpack.encode(files)
    try:
        if folder is None:
            raise FileNotFoundError
        _write(folder / kind / key, hashlib.sha256(data).digest() + data)
    except OSError:
        _kept_here[kind, key] = dict(files)


@contextmanager
def making(kind: str, key: str) -> Iterator[None]:
    """Hold an entry while it is made: another process that wants to make it waits, and then finds it.

    Where no folder can be written, or the other one was killed, nobody waits.
    """
    folder, lock = cache_folder(), -1
    try:
        with suppress(OSError):
            if folder:
                place = folder / kind / f"{key}{PARTIAL}"
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        if lock >= 0:
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
    folder = target.with_name(f"{target.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(folder, ignore_errors=True)  # of a dead process of our number
    folder.mkdir(mode=0o700)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
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


def _read(file: Path) -> bytes:
    """Return the bytes of a file that nobody else could have written, else none."""
    with suppress(OSError), open(os.open(file, READ), "rb") as opened:
        status = os.fstat(opened.fileno())
        private = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if private and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
            return opened.read(MAX_BYTES)
    return b""


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")
    temporary.unlink(missing_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "wb") as opened:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened.write(data)
        if file.is_dir() and not file.is_symlink():  # of an earlier version
            shutil.rmtree(file)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
