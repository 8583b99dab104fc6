"""A quantized matrix that reads as a plain one: ``(table[code] - table[zero point]) * scale``, rows at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.files import AGAIN
from edgeglm.export.checkpoint.header import ITEM_BYTES
from edgeglm.export.checkpoint.quantized.packing import unit, unpack, words_of
from edgeglm.export.checkpoint.tensor import Tensor, to_float32

# Rows that are computed at once, so that what is between codes and values stays small.
ROWS = 32
E8M0 = ("F8_E8M0", "U8")


@dataclass(frozen=True)
class Numbers:
    """Numbers of a matrix's rows, as a checkpoint stores them: (rows, columns).

    Args:
        tensor: Where they are.
        rows: How many rows the matrix has.
        columns: How many numbers a row has.
        transposed: Whether the tensor holds them the other way round.
        block: How many rows share their numbers.
        bits: Of an integer that is packed into words, 0 if they are not packed.
        along_rows: Whether integers of one word are of one column, not of one row.
        order: As `packing.unpack` takes it.
        one_less: Whether integers are stored less one, as zero points in GPTQ's first format.
    """

    tensor: Tensor
    rows: int
    columns: int
    transposed: bool = False
    block: int = 1
    bits: int = 0
    along_rows: bool = False
    order: tuple[int, ...] = ()
    one_less: bool = False

    def __post_init__(self) -> None:
        """Raise DamagedFileError where the tensor has another shape."""
        rows, columns = -(-self.rows // self.block), self.columns
        if self.bits:
            rows = words_of(rows, self.bits) if self.along_rows else rows
            columns = columns if self.along_rows else words_of(columns, self.bits)
        expected = (columns, rows) if self.transposed else (rows, columns)
        if self._stored != expected:
            why = f"has shape {list(self.tensor.shape)} where {list(expected)} fits the other tensors of its matrix"
            raise DamagedFileError(f"{self.tensor.file}: {self.tensor.name}", why, AGAIN)

    @property
    def item_bytes(self) -> int:
        """The bytes of a number that `read` returns."""
        return 1 if self.bits else ITEM_BYTES[self.tensor.dtype]

    @property
    def _stored(self) -> tuple[int, ...]:
        """The tensor's shape; a scalar or a vector is a column."""
        shape = self.tensor.shape
        return shape if len(shape) > 1 else (*shape, *(1,) * (2 - len(shape)))

    def read(self, start: int, stop: int, *, keep_pages: bool) -> NDArray[np.uint8]:
        """Return the rows of the matrix: (rows, bytes), a byte for what is packed."""
        first, last = start // self.block, -(-stop // self.block)
        count, words = unit(self.bits) if self.bits and self.along_rows else (1, 1)
        unit_first, unit_last = first // count, -(-last // count)
        extent = self._stored[1 if self.transposed else 0]
        found = self._numbers(unit_first * words, min(unit_last * words, extent), keep_pages)
        found = found[first - unit_first * count :][: last - first]
        if self.block > 1:
            found = found[np.arange(start, stop) // self.block - first]
        return np.ascontiguousarray(found).view(np.uint8).reshape(stop - start, self.columns * self.item_bytes)

    def _numbers(self, first: int, last: int, keep_pages: bool) -> NDArray[np.generic]:
        """Return the stored rows, or columns of a transposed tensor, as rows of numbers."""
        kind = np.dtype(f"u{ITEM_BYTES[self.tensor.dtype]}")
        if self.transposed:
            found = self.tensor.columns(first, last, keep_pages=keep_pages).view(kind)
        else:
            raw = self.tensor.read(first, last, keep_pages=keep_pages)
            found = raw.view(kind).reshape(last - first, self._stored[1])
        if self.bits:
            axis = 0 if self.along_rows != self.transposed else 1
            found = unpack(found, self.bits, axis, self.order, one_less=self.one_less)
        return (found.T if self.transposed else found)[:, : self.columns]


@dataclass(frozen=True)
class Matrix:
    """A weight of two dimensions whose rows are computed from codes, scales and zero points.

    Args:
        name: What it is called without quantization.
        format: What it is stored as, in words.
        codes: A byte for each number.
        table: What a code means: 256 numbers.
        scales: One for each group of columns.
        zeros: Codes, one for each group of columns, if there are any.
        groups: The group of each column: the columns of one, or a tensor of their groups' numbers.
        rounded: The dtype that the format's own dequantization gives, one of `tensor.FLOATS`.
    """

    name: str
    format: str
    codes: Numbers
    table: Sequence[float]
    scales: Numbers
    zeros: Numbers | None
    groups: int | Tensor
    rounded: str

    @property
    def file(self) -> Path:
        """The file of its codes."""
        return self.codes.tensor.file

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all of its tensors."""
        return tuple(dict.fromkeys(tensor.file for tensor in self._tensors))

    @property
    def _tensors(self) -> list[Tensor]:
        parts = [self.codes.tensor, self.scales.tensor, *([self.zeros.tensor] if self.zeros else [])]
        return parts if isinstance(self.groups, int) else [*parts, self.groups]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.codes.rows, self.codes.columns

    @property
    def dtype(self) -> str:
        """The format, with a hash of the columns' groups, which the bytes of its rows do not have."""
        if isinstance(self.groups, int):
            return self.format
        order = self.groups.read(0, self.groups.shape[0], keep_pages=True)
        return f"{self.format} {hashlib.sha256(order.data).hexdigest()}"

    @property
    def nbytes(self) -> int:
        """The stored bytes of all of its tensors."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row that `read` returns."""
        zeros = self.zeros.columns if self.zeros else 0
        return self.codes.columns + zeros + self.scales.columns * self.scales.item_bytes

    @property
    def decoding_bytes(self) -> int:
        """The memory of the rows that are computed at once."""
        return 3 * 4 * ROWS * self.shape[1]

    def read(self, start: int, stop: int, *, keep_pages: bool = False) -> NDArray[np.uint8]:
        """Return the codes, zero points and scales of each row, one row after the other."""
        parts = [self.codes, *([self.zeros] if self.zeros else []), self.scales]
        return np.concatenate([part.read(start, stop, keep_pages=keep_pages) for part in parts], axis=1).reshape(-1)

    def decode(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return whole rows of `read` as fp32, (rows, columns), in C order. Raises DamagedFileError for odd groups."""
        columns, groups = self.codes.columns, self.scales.columns
        zeros = groups if self.zeros else 0
        records = stored.reshape(-1, self.row_bytes)
        table, group_of = np.array(self.table, np.float32), self._group_of()
        values = np.empty((len(records), columns), np.float32)
        for start in range(0, len(records), ROWS):
            some, out = records[start : start + ROWS], values[start : start + ROWS]
            np.take(table, some[:, :columns], out=out)
            if zeros:
                out -= np.take(table[some[:, columns : columns + zeros]], group_of, axis=1)
            scales = _scales(np.ascontiguousarray(some[:, columns + zeros :]).reshape(-1), self.scales.tensor.dtype)
            with np.errstate(all="ignore"):  # what is not finite is said where the weight is encoded
                out *= np.take(scales.reshape(-1, groups), group_of, axis=1)
                _round(out, self.rounded)
        return values

    @cached_property
    def span(self) -> tuple[int, int] | None:
        """The least and the largest difference of a code and its zero point; None where codes are no whole numbers.

        Reads the zero points. Raises DamagedFileError where they are not there.
        """
        numbers = self._numbers
        if not np.array_equal(np.sort(numbers), numbers.min() + np.arange(len(numbers))):
            return None
        lowest, highest = int(numbers.min()), int(numbers.max())
        if self.zeros is None:
            return lowest, highest
        zeros = numbers[np.unique(self.zeros.read(0, self.shape[0], keep_pages=True))]
        return lowest - int(zeros.max()), highest - int(zeros.min())

    @property
    def _numbers(self) -> NDArray[np.number[Any]]:
        """The numbers that a code can mean."""
        return np.array(self.table)[: 1 << self.codes.bits if self.codes.bits else None]

    @cached_property
    def signed_scales(self) -> bool:
        """Whether a scale is below zero. Reads them. Raises DamagedFileError where they are not there."""
        raw = self.scales.read(0, self.shape[0], keep_pages=True).reshape(-1)
        return bool((_scales(raw, self.scales.tensor.dtype) < 0).any())

    def blocks(self, size: int) -> NDArray[np.int64] | None:
        """Return the group of each block of `size` columns; None where a block has columns of several groups."""
        group_of = self._group_of()
        first = group_of[::size]
        return first if np.array_equal(np.repeat(first, size)[: len(group_of)], group_of) else None

    @property
    def widths(self) -> set[int]:
        """The numbers of columns that groups have, where each one's lie together; else none."""
        group_of = self._group_of()
        starts = np.flatnonzero(np.diff(group_of, prepend=-1))
        whole = len(starts) == len(np.unique(group_of))
        return set(np.diff(starts, append=len(group_of)).tolist()) if whole else set()

    def integers(self, stored: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.int16]]:
        """Return whole rows of `read` as they are quantized, where `span` is not None.

        Returns:
            Codes less their zero points, (rows, columns), scales, (rows, groups), and zero points counted from the
            lowest code, (rows, groups).
        """
        columns, groups = self.codes.columns, self.scales.columns
        count = groups if self.zeros else 0
        records = stored.reshape(-1, self.row_bytes)
        table = np.array(self.table, np.int16)
        codes, zeros = table[records[:, :columns]], np.zeros((len(records), groups), np.int16)
        if count:
            zeros = table[records[:, columns : columns + count]]
            codes -= np.take(zeros, self._group_of(), axis=1)
        raw = np.ascontiguousarray(records[:, columns + count :]).reshape(-1)
        return codes, _scales(raw, self.scales.tensor.dtype).reshape(-1, groups), zeros - np.int16(self._numbers.min())

    def _group_of(self) -> NDArray[np.int64]:
        """Return the group of each column."""
        columns, count = self.codes.columns, self.scales.columns
        if isinstance(self.groups, int):
            return np.arange(columns) // self.groups
        found = self.groups.read(0, columns, keep_pages=True).view(np.int32)
        if columns and found.max() < 0:  # none is set, so that they are in their order
            return np.arange(columns) // -(-columns // count)
        if columns and not 0 <= found.min() <= found.max() < count:
            why = f"has groups beyond the {count} that have scales"
            raise DamagedFileError(f"{self.groups.file}: {self.groups.name}", why, AGAIN)
        return found.astype(np.int64)


def _scales(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    if dtype in E8M0:  # an exponent alone
        return np.where(raw == 255, np.float32("nan"), np.exp2(raw.astype(np.float32) - 127)).astype(np.float32)
    return to_float32(raw, dtype)


def _round(values: NDArray[np.float32], dtype: str) -> None:
    """Round to what a dtype can hold, in place."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            values[...] = values.astype(np.float16)
    elif dtype == "BF16":
        bits = values.view(np.uint32)
        is_number = ~np.isnan(values)
        # To the nearest number with 16 bits less, and of two equally near to the even one.
        bits += np.where(is_number, 0x7FFF + ((bits >> 16) & 1), 0).astype(np.uint32)
        bits &= np.uint32(0xFFFF0000)
