"""The two blocked forms of a weight: a scale for some consecutive columns of a row, and codes of 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

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

Arrays = tuple[NDArray[Any], ...]
# Rows of a tile: its row slice, its block slice, scales [n, blocks], codes [size, n, blocks].
CodedTile = tuple[slice, slice, Floats, Floats]


@dataclass(frozen=True)
class Blocks:
    """The base of the two blocked forms: a scale for `size` columns of a row, codes of `used` bits in `bits` bits."""

    bits: int
    size: int
    used: int

    def tiles(self, weight: Floats, dtype: DTypeLike, signed: bool, inputs: Inputs | None) -> Iterator[CodedTile]:
        """Round each tile."""
        limit = 1 << (self.used - 1)
        if inputs is None or inputs.feedback is None or self.used != 4:
            for rows, block, scale, blocks in self._scales(weight, dtype, signed, inputs):
                yield rows, block, scale, round_to_codes(blocks, scale, -limit, limit - 1)
            return
        scales = np.empty((len(weight), self.count(weight.shape[1])), np.float32)
        for rows, block, scale, _ in self._scales(weight, dtype, signed, inputs):
            scales[rows, block] = scale
        yield from self.given(codes_with_feedback(weight, scales, inputs.feedback, self.size, limit), scales)

    def given(self, whole: NDArray[np.int8] | NDArray[np.int16], scales: Floats) -> Iterator[CodedTile]:
        """Cut codes [n, K] and scales [n, blocks] that are known into tiles."""
        for rows, columns in tiles((whole.shape[0], whole.shape[1])):
            codes = blocks_first(whole[rows, columns], self.size).astype(np.float32)
            block = slice(columns.start // self.size, columns.start // self.size + codes.shape[2])
            yield rows, block, scales[rows, block], codes

    def _scales(self, weight: Floats, dtype: DTypeLike, signed: bool, inputs: Inputs | None) -> Iterator[CodedTile]:
        """Choose the scales of each tile, as they are stored; its elements are not rounded yet."""
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
    """Rows of blocks of unsigned codes around a zero point, as com.microsoft.MatMulNBits reads them.

    The zero point is the middle of the codes, implied, or with `zero_points` one for each block.
    """

    zero_points: bool = False

    def parts(self, rows: int, columns: int, dtype: ir.DataType) -> tuple[Part, ...]:
        """Return ``weight`` [N, blocks, bytes of a block] UINT8, ``scale`` [N, blocks], ``zero`` [N, bytes] UINT8."""
        blocks = self.count(columns)
        packed = (rows, blocks, self.size * self.bits // 8)
        stored = Part("weight", ir.DataType.UINT8, packed, 0), Part("scale", dtype, (rows, blocks), 0)
        if not self.zero_points:
            return stored
        return (*stored, Part("zero", ir.DataType.UINT8, (rows, -(-blocks * self.bits // 8)), 0))

    def encode(self, weight: Floats, dtype: DTypeLike, inputs: Inputs | None = None) -> Arrays:
        """Quantize with scales of either sign, and fill the last block with zeros."""
        zeros = np.full((len(weight), self.count(weight.shape[1])), self._middle, np.uint8)
        return self._pack(zeros, dtype, self.tiles(weight, dtype, True, inputs))

    def keep(self, codes: NDArray[np.int16], scales: Floats, zeros: NDArray[np.uint8], dtype: DTypeLike) -> Arrays:
        """See `storage.keep`."""
        zeros = zeros if self.zero_points else np.full_like(zeros, self._middle)
        return self._pack(zeros, dtype, self.given(codes, scales))

    @property
    def _middle(self) -> int:
        return 1 << (self.bits - 1)

    def _pack(self, zeros: NDArray[np.uint8], dtype: DTypeLike, tiled: Iterator[CodedTile]) -> Arrays:
        rows, blocks = zeros.shape
        packed = np.empty((rows, blocks, self.size * self.bits // 8), np.uint8)
        scales = np.empty((rows, blocks), dtype)
        for row, block, scale, codes in tiled:
            unsigned = (codes + zeros[row, block]).astype(np.uint8)
            packed[row, block] = (pairs(unsigned) if self.bits == 4 else unsigned).transpose(1, 2, 0)
            scales[row, block] = scale
        if not self.zero_points:
            return packed, scales
        return packed, scales, self._packed_zeros(zeros)

    def _packed_zeros(self, zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.bits == 8:
            return zeros
        return np.ascontiguousarray(pairs(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))).T).T)

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Unpack, centre, multiply, and drop the filling."""
        packed, scale, *zeros = (unpairs(array) if self._is_packed(array) else array for array in arrays)
        middle = zeros[0][:, : scale.shape[1], None].astype(np.float32) if zeros else np.float32(self._middle)
        centred = packed.astype(np.float32) - middle
        return (centred * scale[..., None].astype(np.float32)).reshape(len(packed), -1)[:, :columns]

    def _is_packed(self, array: NDArray[Any]) -> bool:
        return self.bits == 4 and array.dtype == np.uint8


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
        return self._pack((weight.shape[0], weight.shape[1]), dtype, self.tiles(weight, dtype, False, inputs))

    def keep(self, codes: NDArray[np.int16], scales: Floats, zeros: NDArray[np.uint8], dtype: DTypeLike) -> Arrays:
        """See `storage.keep`."""
        return self._pack((codes.shape[0], codes.shape[1]), dtype, self.given(codes, scales))

    def _pack(self, shape: tuple[int, int], dtype: DTypeLike, tiled: Iterator[CodedTile]) -> Arrays:
        rows, columns = shape
        self._check_rows(rows)
        per_byte = 8 // self.bits
        stored = np.empty((columns, rows // per_byte), np.uint8)
        scales = np.empty((self.count(columns), rows), dtype)
        for row, block, scale, codes in tiled:
            scales[block, row] = scale.T
            column_major = codes.astype(np.int8).view(np.uint8).transpose(1, 2, 0).reshape(len(scale), -1)
            strip = slice(row.start // per_byte, row.stop // per_byte)
            first = block.start * self.size
            target = stored[first : block.stop * self.size, strip]
            target[:] = (pairs(column_major) if self.bits == 4 else column_major)[:, : len(target)].T
        return stored.view(np.uint8 if self.bits == 4 else np.int8), scales

    def dequantize(self, arrays: Arrays, columns: int) -> Floats:
        """Unpack, multiply and transpose."""
        stored, scale = arrays
        codes = signed_codes(unpairs(stored)) if self.bits == 4 else stored
        return np.ascontiguousarray((codes * np.repeat(scale.astype(np.float32), self.size, 0)[:columns]).T)

    def _check_rows(self, rows: int) -> None:
        if self.bits == 4 and rows % 2:
            raise ValueError(f"INT4 in [K, N] form packs rows in pairs, and {rows} is odd")


def pairs(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack neighbours along the first axis, the first in the low half of the byte (ONNX IR, 4-bit packing)."""
    return (codes[0::2] & np.uint8(15)) | (codes[1::2] << np.uint8(4))


def unpairs(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack bytes along the last axis: [..., n] to [..., 2n]."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = packed & 15, packed >> 4
    return codes


def signed_codes(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Read 4-bit two's complement."""
    return (codes ^ 8).astype(np.int8) - np.int8(8)
