"""Keep blocks of bytes in the store up to a cap: large ones, which are checked in pieces, mapped, and copied once.

A block's name is the hash of its head, and its head is all that its bytes depend on, so a block is right or not
believed: before its bytes are used, its checksum over name, head and bytes is compared, and its head byte by byte. One
that is damaged, cut off, another's, or that another user could have written, is removed. A block appears whole or not
at all. Where the folder cannot be used or is full, nothing is kept, and nothing fails.

A bundle may ship blocks too (`read_block`): its manifest says whose they are.

If a block leaves no room for the next one, those go that were used least recently.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgeglm import store
from edgeglm.cache import cache_folder
from edgeglm.digest import READ_ONLY, hash_range

KIND = "states"
# Whoever writes holds it, so that two processes keep to the cap together, and write a block once.
WRITING = "writing"
_SUM = hashlib.sha256().digest_size
# Heads and names that are remembered: each answer asks several times for those that its prompt begins with.
HEADS = 64
# What is in the folder is counted anew when such a part of the cap was written, since others write too: so many writers
# at once keep to the cap.
PART, WRITERS = 1 / 64, 4
# Bytes of the head's length, and the line that a block's bytes begin on.
_LENGTH, _LINE = 4, 64


@dataclass(frozen=True)
class Block:
    """A block whose bytes were checked: they are in ``file`` from ``start`` on, and no page of it is in memory yet."""

    file: mmap.mmap
    start: int


def block_name(head: bytes) -> str:
    """Return the name of the block with that head."""
    return _name(head)


def read_block(file: Path, head: bytes) -> Block | None:
    """Return the block of a bundle's file, whose hash was checked; None where it has another head.

    Raises:
        OSError: It cannot be read.
    """
    return _checked(file, head, private=False)


def read_head(file: Path) -> bytes:
    """Return the head of the block in a bundle's file, whose hash was checked. Raises OSError."""
    with open(os.open(file, READ_ONLY), "rb") as opened:
        opened.seek(_SUM)
        return opened.read(int.from_bytes(opened.read(_LENGTH), "little"))


class Blocks:
    """The blocks of the user's store, or of a folder.

    Args:
        max_bytes: That all of them together may take on the disk.
        folder: That they are in; the store's if None.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        self.max_bytes = max_bytes
        root = cache_folder()
        self.folder = folder or (root / KIND if root else None)
        self._counted, self._written = float(max_bytes), 0.0  # bytes in the folder, and those written since then

    def find(self, head: bytes) -> Block | None:
        """Return a block whose bytes are those that were written; None where there is none."""
        if self.folder is None:
            return None
        store.sweep_once(self.folder)
        file = self.folder / block_name(head)
        try:
            block = _checked(file, head)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            block = None
        if block is None:
            store.remove(file)
        return block

    def use(self, heads: Sequence[bytes]) -> None:
        """Note that blocks were used just now, the last of them first: whatever needs a block goes before it."""
        if self.folder is None:
            return
        now = time.time_ns()
        for place, head in enumerate(reversed(heads)):
            with suppress(OSError):
                os.utime(self.folder / block_name(head), ns=(now + place, now + place), follow_symlinks=False)

    def keep(self, head: bytes, data: memoryview, needed: Collection[str] = ()) -> bool:
        """Keep a block, unless it is there.

        Args:
            head: Of the block.
            data: Its bytes.
            needed: Names of blocks that do not go for it.

        Returns:
            Whether it is there now.
        """
        size = _start(head) + data.nbytes
        if self.folder is None or size > self.max_bytes:
            return False
        file = self.folder / block_name(head)
        with store.making(KIND, WRITING):
            if self.has(head):
                return True
            try:
                self._make_room(size, {file.name, *needed})
                store.publish(file, *_pieces(file.name, head, data))
            except (OSError, ValueError):
                return False
        return True

    def has(self, head: bytes) -> bool:
        """Return whether there is a block with that head, which may be damaged."""
        with suppress(OSError, ValueError):
            return self.folder is not None and stat.S_ISREG((self.folder / block_name(head)).lstat().st_mode)
        return False

    def _make_room(self, size: int, needed: Collection[str]) -> None:
        """Remove what was used least recently until `size` bytes fit. Raises OSError where what is needed has them.

        Of a folder with many blocks more are removed than that, so that not each block has all of them looked at.
        """
        part = PART * self.max_bytes
        self._written += size
        if self._written <= part and self._counted + WRITERS * part <= self.max_bytes:
            return
        assert self.folder
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = [(entry, entry.stat(follow_symlinks=False)) for entry in os.scandir(self.folder)]
        used, limit = sum(status.st_size for _, status in entries), self.max_bytes
        if size <= part and used + size > limit:
            limit -= int((WRITERS + 1) * part)
        for entry, status in sorted(entries, key=lambda pair: pair[1].st_mtime_ns):
            if used + size <= limit:
                break
            if entry.name not in needed and not entry.name.endswith(store.PARTIAL):
                store.remove(Path(entry.path))
                used -= status.st_size
        if used + size > self.max_bytes:
            raise OSError("the cap is reached")
        self._counted, self._written = used + size, 0.0


@lru_cache(HEADS)
def _name(head: bytes) -> str:
    return hashlib.sha256(head).hexdigest()


def _start(head: bytes) -> int:
    return -(-(_SUM + _LENGTH + len(head)) // _LINE) * _LINE


def _pieces(name: str, head: bytes, data: memoryview) -> tuple[bytes, bytes, memoryview]:
    """Return the checksum, the head, and the bytes of a block's file."""
    padded = (len(head).to_bytes(_LENGTH, "little") + head).ljust(_start(head) - _SUM, b"\0")
    digest = hashlib.sha256(name.encode() + padded)
    digest.update(data)
    return digest.digest(), padded, data


def _checked(file: Path, head: bytes, *, private: bool = True) -> Block | None:
    """Return a block; None where its file is not what was written. Raises OSError if it cannot be read."""
    descriptor = os.open(file, READ_ONLY)
    try:
        status, start = os.fstat(descriptor), _start(head)
        if not (stat.S_ISREG(status.st_mode) and status.st_size > start):
            return None
        if private and not store.is_private(status):
            return None
        front = os.pread(descriptor, start, 0)
        digest = hashlib.sha256(file.name.encode() + front[_SUM:])
        hash_range(digest, descriptor, start, status.st_size)
        wanted = len(head).to_bytes(_LENGTH, "little") + head
        if digest.digest() != front[:_SUM] or not front[_SUM:].startswith(wanted):
            return None
        return Block(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), start)
    finally:
        os.close(descriptor)
