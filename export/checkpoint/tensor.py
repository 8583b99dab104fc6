"""Tensor of a safetensors file: its place, and its rows or columns, one read at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.files import AGAIN, opened, read
from edgeglm.export.checkpoint.header import ITEM_BYTES, Entry

# What a model's weight may be stored as by itself; all else takes scales.
FLOATS = ("F32", "F16", "BF16")
PAGE, BAND_BYTES = 4096, 1 << 20


class Weight(Protocol):
    """A weight of a model, whatever it is stored as."""

    @property
    def name(self) -> str:
        """The name in the checkpoint; without quantization, if it is quantized."""

    @property
    def file(self) -> Path:
        """The file of its numbers."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold parts of it."""

    @property
    def dtype(self) -> str:
        """The stored dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, outermost first."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that it is stored as."""

    @property
    def row_bytes(self) -> int:
        """The bytes of a row that `read` returns."""

    @property
    def decoding_bytes(self) -> int:
        """The most that `decode` takes beside what it is given and gives, whatever the number of rows."""

    def read(self, start: int, stop: int, *, keep_pages: bool = False) -> NDArray[np.uint8]:
        """Return the rows as they are stored, one after the other; the page cache lets go of them, or not."""

    def decode(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the whole rows that `read` gave, as fp32: (rows, …), in C order."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of ``nbytes`` bytes at ``offset`` in ``file``, row-major and little-endian."""

    name: str
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, entry: Entry) -> Tensor:
        """Take it from a header."""
        return cls(entry.name, entry.file, entry.begin, entry.dtype, entry.shape)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one."""
        return (self.file,)

    @property
    def nbytes(self) -> int:
        """The size of the data in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of what a row holds."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def decoding_bytes(self) -> int:
        """Zero: nothing is decoded."""
        return 0

    def read(self, start: int, stop: int, *, keep_pages: bool = False) -> NDArray[np.uint8]:
        """Return the rows as they are stored. Raises DamagedFileError where the file ends before."""
        offset, size = self.offset + start * self.row_bytes, (stop - start) * self.row_bytes
        with self._opened(offset, size, keep_pages) as fd:
            return self._checked(read(fd, offset, size), size)

    def decode(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the whole rows that `read` gave, as fp32: (rows, …), in C order."""
        # Of rows without numbers none can be counted.
        rows = len(stored) // self.row_bytes if self.row_bytes else 0
        return to_float32(stored, self.dtype).reshape(rows, *self.shape[1:])

    def columns(self, start: int, stop: int, *, keep_pages: bool = False) -> NDArray[np.uint8]:
        """Return columns of a matrix as they are stored: (rows, bytes).

        Args:
            start: The first column.
            stop: The column behind the last one.
            keep_pages: Whether the page cache keeps the tensor; else it lets go of it with the last column, since a
                page holds pieces of many.
        """
        (rows, width), item = self.shape, ITEM_BYTES[self.dtype]
        if (start, stop) == (0, width):
            return self.read(0, rows, keep_pages=keep_pages).reshape(rows, width * item)
        strip = np.empty((rows, (stop - start) * item), np.uint8)
        # A call for each row costs more than whole rows do, where a page holds more than one row's piece.
        first, last = (start * item, stop * item) if strip.shape[1] >= PAGE else (0, width * item)
        step = 1 if first or last < width * item else max(1, BAND_BYTES // (width * item))
        with self._opened(self.offset, self.nbytes, keep_pages or stop < width) as fd:
            for row in range(0, rows, step):
                count, offset = min(step, rows - row), self.offset + row * width * item + first
                size = (count - 1) * width * item + last - first
                band = self._checked(read(fd, offset, size), size).reshape(count, -1)
                strip[row : row + count] = band[:, start * item - first : stop * item - first]
        return strip

    @contextmanager
    def _opened(self, offset: int, size: int, keep_pages: bool) -> Iterator[int]:
        with opened(self.file) as fd:
            yield fd
            if not keep_pages:
                os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def _checked(self, data: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        if len(data) < size:
            raise DamagedFileError(f"{self.file}: {self.name}", "is cut off by the end of the file", AGAIN)
        return data


def to_float32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return the bytes of one of `FLOATS` as fp32, exactly: (numbers)."""
    if dtype == "BF16":
        # A bfloat16 is the upper half of the float32 of the same value.
        wide: NDArray[np.uint32] = np.left_shift(raw.view(np.uint16), 16, dtype=np.uint32)
        return wide.view(np.float32)
    return raw.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32, copy=False)
