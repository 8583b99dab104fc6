"""A large file of a bundle, whose size and layout are known before its first byte is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from edgeglm.digest import hash_range
from edgeglm.errors import DamagedFileError
from edgeglm.export.write.disk import explained, reserve, write_all
from edgeglm.export.write.record import Extents, Written, read_pieces
from edgeglm.manifest import File

if TYPE_CHECKING:
    from typing_extensions import Buffer

WRITE_OUT_BYTES = 8 << 20
HASH_BYTES = 64 << 20
# Alignment between tensors is hashed on the way; what lies behind a larger hole is read back at the end.
MAX_PADDING = 1 << 16


class OutputFile:
    """A file with its space reserved, to be written at offsets, each byte once, by one thread at a time.

    The hash follows the bytes as long as they come in order, so that an unbroken export reads nothing back. What has
    to be read back is compared with the checksums of what was written: the hash is that of no other bytes.

    Args:
        path: Where it is written.
        name: What an error calls it.
        size: Its final size in bytes.
        reserved: Whether it is there already.
    """

    def __init__(self, path: Path, name: Path, size: int, *, reserved: bool) -> None:
        self.size = size
        self.unsynced = 0
        self._name = name
        self._started = 0
        self._lock = Lock()
        self._digest, self._hashed = hashlib.sha256(), 0
        self._covered, self._open, self._taken = Extents(), Written(), list[Written]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not reserved:
            try:
                with explained(name, self.descriptor, size):
                    reserve(self.descriptor, size)
            except BaseException:
                self.close()
                raise

    def resume(self, vouched: Iterable[Written]) -> bool:
        """Read what an earlier run has written; False if it is not what that vouched for.

        Whatever nobody vouches for is zeros afterwards, as in a new file.
        """
        try:
            for written in vouched:
                for begin, end in written.pieces():
                    if end > self.size:
                        return False
                    self._covered.add(begin, end)
                if not written.is_in(self.descriptor, self._follow):
                    return False
                self._taken.append(written)
            for begin, end in self._covered.gaps(0, self.size):
                for offset, data in read_pieces(self.descriptor, begin, end):
                    if any(data):
                        write_all(self.descriptor, bytes(len(data)), offset)
        except (OSError, ValueError):
            return False
        return True

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write the bytes of a contiguous buffer at an offset.

        Raises:
            ValueError: They would lie outside of the file, or where something was written before.
            BudgetError: The disk is full, which only a file system without reservation comes to here.
        """
        view = memoryview(data)
        if offset < 0 or offset + view.nbytes > self.size:
            raise ValueError(f"{self._name}: {view.nbytes} bytes at {offset} are outside of its {self.size}")
        if not view.nbytes:
            return
        view = view.cast("B")
        with self._lock:
            self._covered.add(offset, offset + len(view))
            with explained(self._name, self.descriptor, self.size):
                write_all(self.descriptor, view, offset)
            self._count(offset, view)

    def adopt(self) -> None:
        """Vouch for the whole file as it is: another process has just written it."""
        with self._lock, explained(self._name, self.descriptor):
            if self.size:
                self._covered.add(0, self.size)
            for offset, data in read_pieces(self.descriptor, 0, self.size):
                self._count(offset, memoryview(data))

    def take(self) -> Written | None:
        """Return what was written since the last call, if anything."""
        with self._lock:
            if not self._open.runs:
                return None
            self._taken.append(self._open)
            self._open = Written()
            return self._taken[-1]

    def sync(self) -> None:
        """Bring what is written to the disk, and its pages out of the page cache."""
        with self._lock:
            self.unsynced = self._started = 0
        with explained(self._name, self.descriptor, self.size):
            os.fdatasync(self.descriptor)
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def entry(self) -> File:
        """Return the manifest's entry for the finished file.

        Raises:
            DamagedFileError: What is read back is not what was written.
        """
        with self._lock, explained(self._name, self.descriptor):
            if self._hashed < self.size:
                self._check()
            while self._hashed < self.size:
                start, end = self._hashed, min(self._hashed + HASH_BYTES, self.size)
                hash_range(self._digest, self.descriptor, start, end)
                os.posix_fadvise(self.descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
                self._hashed = end
        return File(self._digest.hexdigest(), self.size)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def _count(self, offset: int, view: memoryview) -> None:
        self._open.add(offset, view)
        self.unsynced += len(view)
        self._follow(offset, view)
        self._write_out()

    def _follow(self, offset: int, view: memoryview) -> None:
        if offset < self._hashed:  # in what was hashed as padding
            self._digest, self._hashed = hashlib.sha256(), 0
        gap = offset - self._hashed
        empty = [(self._hashed, offset)] if gap else []
        if gap <= MAX_PADDING and [*self._covered.gaps(self._hashed, offset)] == empty:
            self._digest.update(bytes(gap))
            self._digest.update(view)
            self._hashed = offset + len(view)

    def _check(self) -> None:
        """Compare what is on the disk, as far as it was not hashed, with the checksums of what was written there."""
        for written in (*self._taken, self._open):
            if any(end > self._hashed for _, end in written.pieces()) and not written.is_in(self.descriptor):
                raise _damaged(self._name)
        for begin, end in self._covered.gaps(self._hashed, self.size):
            if any(any(data) for _, data in read_pieces(self.descriptor, begin, end)):
                raise _damaged(self._name)

    def _write_out(self) -> None:
        """Let the disk work while we compute: of a dirty page, DONTNEED starts the write (Linux: mm/fadvise.c)."""
        if self.unsynced - self._started >= WRITE_OUT_BYTES:
            self._started = self.unsynced
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _damaged(name: Path) -> DamagedFileError:
    return DamagedFileError(name, "the disk does not hold what was written", "check the disk, and export again")
