"""A large file of a bundle, whose size and layout are known before its first byte is written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from edgeglm.digest import hash_range
from edgeglm.export.pack.disk import explained, reserve, write_all
from edgeglm.manifest import File

if TYPE_CHECKING:
    from typing_extensions import Buffer

WRITE_OUT_BYTES = 8 << 20
HASH_BYTES = 64 << 20
# Alignment between tensors is hashed on the way; what lies behind a larger hole is read back at the end.
MAX_PADDING = 1 << 16


class OutputFile:
    """A file with its space reserved, to be written at offsets; threads may share it.

    The hash follows the bytes as long as they come in order, so that an unbroken export reads nothing back.

    Args:
        path: Where it is written.
        name: What an error calls it.
        size: Its final size in bytes.
        reserved: Whether an earlier run has made it.
    """

    def __init__(self, path: Path, name: Path, size: int, *, reserved: bool) -> None:
        self.size = size
        self.unsynced = 0
        self._name = name
        self._started = 0
        self._lock = Lock()
        self._digest, self._hashed = hashlib.sha256(), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not reserved:
            try:
                with explained(name, self.descriptor, size):
                    reserve(self.descriptor, size)
            except BaseException:
                self.close()
                raise

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write the bytes of a contiguous buffer at an offset.

        Raises:
            ValueError: They would lie outside of the file.
            BudgetError: The disk is full, which only a file system without reservation comes to here.
        """
        view = memoryview(data)
        if offset < 0 or offset + view.nbytes > self.size:
            raise ValueError(f"{self._name}: {view.nbytes} bytes at {offset} are outside of its {self.size}")
        if not view.nbytes:
            return
        view = view.cast("B")
        with explained(self._name, self.descriptor, self.size):
            write_all(self.descriptor, view, offset)
        with self._lock:
            self.unsynced += len(view)
            self._follow(offset, view)
            self._write_out()

    def sync(self) -> None:
        """Bring what is written to the disk, and its pages out of the page cache."""
        with self._lock:
            self.unsynced = self._started = 0
        with explained(self._name, self.descriptor, self.size):
            os.fdatasync(self.descriptor)
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def entry(self) -> File:
        """The manifest's entry for the finished file."""
        with self._lock, explained(self._name, self.descriptor):
            while self._hashed < self.size:
                start, end = self._hashed, min(self._hashed + HASH_BYTES, self.size)
                hash_range(self._digest, self.descriptor, start, end)
                os.posix_fadvise(self.descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
                self._hashed = end
        return File(self._digest.hexdigest(), self.size)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def _follow(self, offset: int, view: memoryview) -> None:
        if offset < self._hashed:  # what was hashed has changed
            self._digest, self._hashed = hashlib.sha256(), 0
        elif offset - self._hashed <= MAX_PADDING:
            hash_range(self._digest, self.descriptor, self._hashed, offset)
            self._digest.update(view)
            self._hashed = offset + len(view)

    def _write_out(self) -> None:
        """Let the disk work while we compute: of a dirty page, DONTNEED starts the write (Linux: mm/fadvise.c)."""
        if self.unsynced - self._started >= WRITE_OUT_BYTES:
            self._started = self.unsynced
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
