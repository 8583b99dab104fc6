"""The stored form of a Linear weight W [N, K]: its parts, a chunk's bytes of each, and the way back.

`parts` gives sizes before any weight is read. `encode` takes consecutive rows of W and returns the same rows of every
part, so that a matrix is never held whole; chunks may be of any size that is a multiple of `Part.row_multiple`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from edgeglm.engines import Dialect
from edgeglm.export.model import Part
from edgeglm.export.quantize.blocks import Arrays, ColumnBlocks, PackedBlocks
from edgeglm.export.quantize.feedback import Inputs
from edgeglm.export.quantize.rounding import Floats, check_range, magnitude, round_to_codes, storable_scale, tiles
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


def keep(
    scheme: Scheme,
    dialect: Dialect,
    codes: NDArray[np.int16],
    scales: Floats,
    zeros: NDArray[np.uint8],
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> Arrays:
    """Return rows that are quantized already in every part, as `encode` does: no code changes.

    Args:
        scheme: The precision, blocked or INT8.
        dialect: The engine's.
        codes: [n, K] less their zero points, within the form's range.
        scales: [n, blocks] of a blocked scheme, else [n, 1].
        zeros: Of the same shape, zero points counted from the lowest code; a form without them leaves them out.
        dtype: Of the activations, to which scales are rounded.

    Raises:
        ValueError: A scale is NaN or infinite.
        OverflowError: It is more than the stored type can hold.
    """
    form, stored_as = _form(scheme, dialect), dtype.numpy()
    assert isinstance(form, PackedBlocks | ColumnBlocks | PerChannel)
    check_range(np.abs(scales), stored_as)
    return form.keep(codes, storable_scale(scales, stored_as, 128), zeros, stored_as)


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

    def keep(self, codes: NDArray[np.int16], scales: Floats, zeros: NDArray[np.uint8], dtype: DTypeLike) -> Arrays:
        """See `storage.keep`."""
        return np.ascontiguousarray(codes.T.astype(np.int8)), scales[:, 0].astype(dtype)

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Multiply and transpose."""
        weight, scale = arrays
        return np.ascontiguousarray((weight * scale.astype(np.float32)).T)


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
    (Blocked, "ort"): lambda scheme: PackedBlocks(scheme.width, scheme.block_size, scheme.bits, scheme.zero_points),
    (Blocked, "portable"): lambda scheme: ColumnBlocks(scheme.width, scheme.block_size, scheme.bits),
}
