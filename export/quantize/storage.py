"""The stored form of a Linear weight W [N, K]: its parts, a chunk's bytes of each, and the way back.

`parts` gives sizes before any weight is read. `encode` takes consecutive rows of W and returns the same rows of every
part, so that a matrix is never held whole; chunks may be of any size that is a multiple of `Part.row_multiple`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from edgeglm.engines import Dialect
from edgeglm.export.model import Part
from edgeglm.export.quantize.feedback import Inputs, codes_with_feedback
from edgeglm.export.quantize.rounding import (
    Floats,
    block_scale,
    blocks_first,
    check_range,
    energy_blocks,
    int4_block_scale,
    magnitude,
    round_to_codes,
    storable_scale,
    tiles,
)
from edgeglm.export.quantize.schemes import (
    Blocked,
    Codes,
    Fp16,
    Fp32,
    Int8,
    Int8Static,
    NpuInt8,
    Scheme,
    kind_of,
)

Arrays = tuple[NDArray[Any], ...]
# What an NPU takes beside a matrix: unsigned activations, and a bias as it is summed.
CODES = {8: ir.DataType.UINT8, 16: ir.DataType.UINT16, 32: ir.DataType.INT32}
# Of 32 bits, what fp32 holds exactly.
REACH = 1 << 24


class Form(Protocol):
    """A way to store a weight; `dtype` is that of the activations."""

    def parts(self, rows: int, columns: int, dtype: ir.DataType) -> tuple[Part, ...]:
        """See `parts`."""

    def encode(self, weight: Floats, dtype: DTypeLike, inputs: Inputs | None = None) -> Arrays:
        """See `encode`."""

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """See `dequantize`."""


def parts(
    scheme: Scheme, dialect: Dialect, rows: int, columns: int, dtype: ir.DataType = ir.DataType.FLOAT
) -> tuple[Part, ...]:
    """Return the parts of W [rows, columns], exact to the byte.

    Args:
        scheme: How W is stored.
        dialect: Whose operators will read it.
        rows: Output channels, N.
        columns: Input channels, K.
        dtype: Of the activations, FLOAT or FLOAT16; scales are stored in it.

    Raises:
        ValueError: For INT4 in ``portable`` with an odd number of rows, whose packed columns would share bytes.
    """
    return _form(scheme, dialect).parts(rows, columns, dtype)


def encode(
    scheme: Scheme,
    dialect: Dialect,
    weight: Floats,
    dtype: ir.DataType = ir.DataType.FLOAT,
    inputs: Inputs | None = None,
) -> tuple[NDArray[Any], ...]:
    """Return rows of a weight in every part, in the order of `parts`: contiguous and in the stored type.

    INT4 is packed to uint8; the rows run along `Part.row_axis`. The parts of a matrix do not depend on how it was cut
    into chunks. Needs no more than the result and a few tiles.

    Args:
        scheme: The precision.
        dialect: The engine's.
        weight: [n, K], not changed.
        dtype: Of the activations.
        inputs: What is known of what the columns are multiplied by: they are multiplied by its factor, and INT4 weighs
            its errors by energies, or has them make each other good.

    Raises:
        ValueError: For NaN, infinity, or n no multiple of `Part.row_multiple`.
        OverflowError: For more than the stored type can hold.
    """
    if inputs and inputs.factor is not None:
        weight = weight * inputs.factor
    return _form(scheme, dialect).encode(weight, dtype.numpy(), inputs)


def dequantize(scheme: Scheme, dialect: Dialect, arrays: Arrays, columns: int) -> Floats:
    """Return what `encode` made of [n, columns] rows as fp32: the weight that the engine multiplies by."""
    return _form(scheme, dialect).dequantize(arrays, columns)


def _form(scheme: Scheme, dialect: Dialect) -> Form:
    return FORMS[kind_of(scheme), dialect](scheme)


@dataclass(frozen=True)
class Dense:
    """[K, N] floating point, as MatMul reads it."""

    dtype: ir.DataType

    def parts(self, rows: int, columns: int, dtype: ir.DataType) -> tuple[Part, ...]:
        """Return ``weight`` [K, N]; the activations' type has no part in it."""
        return (Part("weight", self.dtype, (columns, rows), 1),)

    def encode(self, weight: Floats, dtype: DTypeLike, inputs: Inputs | None = None) -> Arrays:
        """Transpose and round."""
        check_range(magnitude(weight, 1), self.dtype.numpy())
        stored = np.empty(weight.shape[::-1], self.dtype.numpy())
        for rows, columns in tiles(weight.shape):
            stored[columns, rows] = weight[rows, columns].T
        return (stored,)

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Transpose and widen."""
        return np.ascontiguousarray(arrays[0].T, np.float32)


@dataclass(frozen=True)
class PerChannel:
    """[K, N] INT8 and one scale a column, as MatMulIntegerToFloat and DequantizeLinear(axis=1) read it."""

    def parts(self, rows: int, columns: int, dtype: ir.DataType) -> tuple[Part, ...]:
        """Return ``weight`` [K, N] INT8, ``scale`` [N]."""
        return (Part("weight", ir.DataType.INT8, (columns, rows), 1), Part("scale", dtype, (rows,), 0))

    def encode(self, weight: Floats, dtype: DTypeLike, inputs: Inputs | None = None) -> Arrays:
        """Scale every row's largest magnitude to 127: -128 would make the grid asymmetric for a gain of 0.4%."""
        largest = magnitude(weight, 1)
        check_range(largest, dtype)
        scale = storable_scale(largest / np.float32(127), dtype, 128)
        stored = np.empty(weight.shape[::-1], np.int8)
        for rows, columns in tiles(weight.shape):
            stored[columns, rows] = round_to_codes(weight[rows, columns].copy(), scale[rows, None], -127, 127).T
        return stored, scale.astype(dtype)

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Multiply and transpose."""
        weight, scale = arrays
        return np.ascontiguousarray((weight * scale.astype(np.float32)).T)


@dataclass(frozen=True)
class Blocks:
    """The base of the two blocked forms: a scale for `size` columns of a row, codes of `used` bits in `bits` bits."""

    bits: int
    size: int
    used: int

    def tiles(
        self, weight: Floats, dtype: DTypeLike, signed: bool, inputs: Inputs | None
    ) -> Iterator[tuple[slice, slice, Floats, Floats]]:
        """Yield row slice, block slice, scale [n, blocks] and codes [size, n, blocks] of each tile."""
        limit = 1 << (self.used - 1)
        if inputs is None or inputs.feedback is None or self.used != 4:
            for rows, block, scale, blocks in self._scales(weight, dtype, signed, inputs):
                yield rows, block, scale, round_to_codes(blocks, scale, -limit, limit - 1)
            return
        scales = np.empty((len(weight), self.count(weight.shape[1])), np.float32)
        for rows, block, scale, _ in self._scales(weight, dtype, signed, inputs):
            scales[rows, block] = scale
        whole = codes_with_feedback(weight, scales, inputs.feedback, self.size, limit)
        for rows, columns in tiles(weight.shape):
            codes = blocks_first(whole[rows, columns], self.size).astype(np.float32)
            block = slice(columns.start // self.size, columns.start // self.size + codes.shape[2])
            yield rows, block, scales[rows, block], codes

    def _scales(
        self, weight: Floats, dtype: DTypeLike, signed: bool, inputs: Inputs | None
    ) -> Iterator[tuple[slice, slice, Floats, Floats]]:
        """Yield row slice, block slice, scale [n, blocks] as it is stored, and the elements of each tile."""
        weighed = None if inputs is None else energy_blocks(inputs.energy, self.size)
        for rows, columns in tiles(weight.shape):
            blocks = blocks_first(weight[rows, columns], self.size)
            check_range(magnitude(blocks, 0), dtype)
            first = columns.start // self.size
            counts = None if weighed is None else weighed[:, first : first + blocks.shape[2]]
            limit = 1 << (self.used - 1)
            searched = self.used == 4  # where a step is large
            scale = int4_block_scale(blocks, signed, counts) if searched else block_scale(blocks, limit - 1)
            yield rows, slice(first, first + scale.shape[1]), storable_scale(scale, dtype, limit), blocks

    def count(self, columns: int) -> int:
        """Count the blocks in a row of `columns`, the last one possibly part filled."""
        return -(-columns // self.size)


@dataclass(frozen=True)
class PackedBlocks(Blocks):
    """Rows of blocks of unsigned codes around an implied zero point, as com.microsoft.MatMulNBits reads them."""

    def parts(self, rows: int, columns: int, dtype: ir.DataType) -> tuple[Part, ...]:
        """Return ``weight`` [N, blocks, bytes of a block] UINT8, ``scale`` [N, blocks]."""
        blocks = self.count(columns)
        packed = (rows, blocks, self.size * self.bits // 8)
        return (Part("weight", ir.DataType.UINT8, packed, 0), Part("scale", dtype, (rows, blocks), 0))

    def encode(self, weight: Floats, dtype: DTypeLike, inputs: Inputs | None = None) -> Arrays:
        """Quantize with scales of either sign, and fill the last block with zeros."""
        rows, blocks = len(weight), self.count(weight.shape[1])
        packed = np.empty((rows, blocks, self.size * self.bits // 8), np.uint8)
        scales = np.empty((rows, blocks), dtype)
        for row, block, scale, codes in self.tiles(weight, dtype, True, inputs):
            unsigned = (codes + np.float32(1 << (self.bits - 1))).astype(np.uint8)
            packed[row, block] = (_pairs(unsigned) if self.bits == 4 else unsigned).transpose(1, 2, 0)
            scales[row, block] = scale
        return packed, scales

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Unpack, centre, multiply, and drop the filling."""
        packed, scale = arrays
        codes = _unpairs(packed) if self.bits == 4 else packed
        centred = codes.astype(np.float32) - (1 << (self.bits - 1))
        return (centred * scale[..., None].astype(np.float32)).reshape(len(packed), -1)[:, :columns]


@dataclass(frozen=True)
class ColumnBlocks(Blocks):
    """[K, N] signed codes and [blocks, N] positive scales, as the standard DequantizeLinear(axis=0) reads them."""

    def parts(self, rows: int, columns: int, dtype: ir.DataType) -> tuple[Part, ...]:
        """Return ``weight`` [K, N] INT8 or INT4, ``scale`` [blocks, N]."""
        weight = Part("weight", ir.DataType.INT4 if self.bits == 4 else ir.DataType.INT8, (columns, rows), 1)
        self._check_rows(rows)
        return weight, Part("scale", dtype, (self.count(columns), rows), 1)

    def encode(self, weight: Floats, dtype: DTypeLike, inputs: Inputs | None = None) -> Arrays:
        """Quantize with positive scales, the only ones that TensorRT takes."""
        rows, columns = weight.shape
        self._check_rows(rows)
        per_byte = 8 // self.bits
        stored = np.empty((columns, rows // per_byte), np.uint8)
        scales = np.empty((self.count(columns), rows), dtype)
        for row, block, scale, codes in self.tiles(weight, dtype, False, inputs):
            scales[block, row] = scale.T
            column_major = codes.astype(np.int8).view(np.uint8).transpose(1, 2, 0).reshape(len(scale), -1)
            strip = slice(row.start // per_byte, row.stop // per_byte)
            first = block.start * self.size
            target = stored[first : block.stop * self.size, strip]
            target[:] = (_pairs(column_major) if self.bits == 4 else column_major)[:, : len(target)].T
        return stored.view(np.uint8 if self.bits == 4 else np.int8), scales

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Unpack, multiply and transpose."""
        stored, scale = arrays
        codes = _signed(_unpairs(stored)) if self.bits == 4 else stored
        return np.ascontiguousarray((codes * np.repeat(scale.astype(np.float32), self.size, 0)[:columns]).T)

    def _check_rows(self, rows: int) -> None:
        if self.bits == 4 and rows % 2:
            raise ValueError(f"INT4 in [K, N] form packs rows in pairs, and {rows} is odd")


@dataclass(frozen=True)
class Coded:
    """[N] or [N, K] codes with one scale and zero point, as DequantizeLinear reads them.

    8 and 16 bits are unsigned around the zero point, 32 are signed and have none.
    """

    bits: int

    def parts(self, rows: int, columns: int, dtype: ir.DataType) -> tuple[Part, ...]:
        """Return ``weight`` [N] or [N, K], ``scale`` [] FLOAT, ``zero`` []."""
        codes = CODES[self.bits]
        shape = (rows,) if columns == 1 else (rows, columns)
        return Part("weight", codes, shape, 0), Part("scale", ir.DataType.FLOAT, (), 0), Part("zero", codes, (), 0)

    def encode(self, weight: Floats, dtype: DTypeLike, inputs: Inputs | None = None) -> Arrays:
        """Scale the range of all values, and zero, to all codes; takes the whole at once."""
        largest = magnitude(weight.reshape(1, -1), 1)
        check_range(largest, np.float32)
        codes_type = CODES[self.bits].numpy()
        low, high = min(float(weight.min()), 0.0), max(float(weight.max()), 0.0)
        span, levels = (largest, REACH) if self.bits == 32 else (np.array([high - low], np.float32), 2**self.bits - 1)
        step = storable_scale(span / np.float32(levels), np.float32, levels)
        zero = np.zeros_like(step) if self.bits == 32 else np.rint(-low / step)
        lowest = -levels if self.bits == 32 else 0
        codes = np.clip(np.rint(weight / step) + zero, lowest, levels).astype(codes_type)
        return codes if weight.shape[1] > 1 else codes[:, 0].copy(), step, zero.astype(codes_type)

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Subtract the zero point and multiply by the scale."""
        codes, step, zero = (array.astype(np.float32) for array in arrays)
        centred: Floats = ((codes - zero) * step).reshape(-1, columns)
        return centred


def _pairs(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack neighbours along the first axis, the first in the low half of the byte (ONNX IR, 4-bit packing)."""
    return (codes[0::2] & np.uint8(15)) | (codes[1::2] << np.uint8(4))


def _unpairs(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack bytes along the last axis: [..., n] to [..., 2n]."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = packed & 15, packed >> 4
    return codes


def _signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Read 4-bit two's complement."""
    return (codes ^ 8).astype(np.int8) - np.int8(8)


FORMS: dict[tuple[type[Any], Dialect], Callable[[Any], Form]] = {
    (Fp32, "ort"): lambda _: Dense(ir.DataType.FLOAT),
    (Fp32, "portable"): lambda _: Dense(ir.DataType.FLOAT),
    (Fp16, "ort"): lambda _: Dense(ir.DataType.FLOAT16),
    (Fp16, "portable"): lambda _: Dense(ir.DataType.FLOAT16),
    (Int8, "ort"): lambda _: PerChannel(),
    (Int8, "portable"): lambda _: PerChannel(),
    (Int8Static, "ort"): lambda _: PerChannel(),
    (NpuInt8, "qdq"): lambda _: PerChannel(),
    (Codes, "qdq"): lambda scheme: Coded(scheme.bits),
    (Blocked, "ort"): lambda scheme: PackedBlocks(scheme.width, scheme.block_size, scheme.bits),
    (Blocked, "portable"): lambda scheme: ColumnBlocks(scheme.width, scheme.block_size, scheme.bits),
}
