"""Round fp32 weights to integer codes and scales, in tiles that stay in the processor's cache.

A scale is chosen, rounded to the type it is stored in, and only then divided by, so that the codes are the nearest to
what the engine will multiply. Every step is a numpy call on a whole tile, which releases the GIL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.float32]

# 256 KB of fp32: fits the second-level cache with its temporaries. Even, for INT4 pairs; whole blocks of any size.
TILE_ROWS, TILE_COLUMNS = 64, 1024

# Where the element of largest magnitude lands on the scale of codes, -8 … 7. Past 8 it is clipped, for finer steps.
INT4_REACHES = (7.25, 8.0, 8.5, 9.0)
# Of the mean energy, given to every column: what calibration never saw may come (GPTQ's percdamp).
DAMPING = np.float32(0.01)

# The search counts in whole 2^-13 of the largest magnitude, so that sums over 128 elements times 8 are integers below
# 2^24, exact in fp32: numpy adds in an order that depends on the tile, and the bytes must not depend on the chunk.
UNITS = np.float32(8192)


def tiles(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Yield the row and column slices that cover a matrix."""
    rows, columns = shape
    for row in range(0, rows, TILE_ROWS):
        for column in range(0, columns, TILE_COLUMNS):
            yield slice(row, min(rows, row + TILE_ROWS)), slice(column, min(columns, column + TILE_COLUMNS))


def magnitude(weight: Floats, axis: int) -> Floats:
    """Return max |weight| along an axis; NaN where there is one."""
    largest: Floats = np.maximum(weight.max(axis), -weight.min(axis))
    return largest


def check_range(largest: Floats, dtype: DTypeLike) -> None:
    """Check that the floating-point `dtype` can hold magnitudes.

    Raises:
        ValueError: One is NaN or infinite.
        OverflowError: One is more than the type can hold.
    """
    if not np.isfinite(largest).all():
        raise ValueError("the weight holds NaN or infinity")
    if largest.size and largest.max() > np.finfo(dtype).max:
        why = f"the weight holds {largest.max():g}, more than {np.dtype(dtype)} can ({np.finfo(dtype).max})"
        raise OverflowError(why)


def storable_scale(scale: Floats, dtype: DTypeLike, reach: int) -> Floats:
    """Round scales to a type, away from zero and from what would overflow in the engine.

    TensorRT refuses a scale of zero, which is that of an all-zero channel; subnormal fp32 is flushed to zero by some
    engines, while subnormal fp16 is what small channels need and no engine lacks.

    Args:
        scale: Of any shape.
        dtype: The type that they are stored in.
        reach: The largest magnitude of a code, which the engine multiplies by the scale.
    """
    info = np.finfo(dtype)
    lowest = info.smallest_subnormal if info.bits == 16 else info.tiny
    size = np.clip(np.abs(scale), np.float32(lowest), np.float32(info.max) / np.float32(reach))
    # Not copysign: the magnitude of a channel of zeros may come as -0.0.
    rounded: Floats = np.where(scale < 0, -size, size).astype(dtype).astype(np.float32)
    return rounded


def round_to_codes(weight: Floats, scale: Floats, lowest: int, highest: int) -> Floats:
    """Replace `weight` by the nearest codes under broadcast scales, still fp32, and return it."""
    np.divide(weight, scale, out=weight)
    np.rint(weight, out=weight)
    return np.clip(weight, lowest, highest, out=weight)


def blocks_first(weight: NDArray[Any], block_size: int) -> NDArray[Any]:
    """Copy [n, k] to [block_size, n, blocks], the last block filled up with zeros.

    With the block's elements on the first axis, reductions and broadcasts run along long contiguous rows: 20 times
    faster in numpy than over a last axis of 32.
    """
    rows, columns = weight.shape
    if missing := -columns % block_size:
        weight = np.pad(weight, ((0, 0), (0, missing)))
    # Always a copy, also of a row of one block, which lies in this order already: codes are rounded in place.
    return np.array(weight.reshape(rows, -1, block_size).transpose(2, 0, 1), order="C")


def block_scale(blocks: Floats, highest: int) -> Floats:
    """Return [n, blocks] scales that put the largest magnitude of [block_size, n, blocks] at the highest code."""
    return magnitude(blocks, 0) / np.float32(highest)


def int4_block_scale(blocks: Floats, signed: bool, energy: Floats | None = None) -> Floats:
    """Return the [n, blocks] scales of least squared error among a few, for codes -8 … 7.

    Each candidate puts the largest magnitude at one of `INT4_REACHES`, then refits the scale to its codes by least
    squares. With `signed` scales the largest element always takes the longer, negative side, as in llama.cpp's Q4_0
    and ONNX Runtime's own quantizer. Relative L2 error in percent, Gaussian / Student-t(3) weights, block 32:
    maximum at 7: 9.7 / 14.4; Q4_0: 8.6 / 12.8; here, signed: 8.1 / 12.5, positive: 8.6 / 13.3.

    Args:
        blocks: Weights (block_size, n, blocks).
        signed: Whether a scale may be negative.
        energy: Mean squared inputs (block_size, blocks), by which squared errors are weighed.
    """
    low, high = blocks.min(0), blocks.max(0)
    extreme = np.where(high > -low, high, low)
    base: Floats = -extreme if signed else np.abs(extreme)
    base[base == 0] = 1
    units = np.divide(blocks, base)
    if energy is not None:
        return base * _best_weighed_fit(units, energy)
    return base * _best_fit(np.rint(np.multiply(units, UNITS, out=units), out=units))


def energy_blocks(energy: Floats, block_size: int) -> Floats:
    """Return the damped mean squares [columns] as [block_size, blocks], zero where the last block is filled up."""
    damped = energy + DAMPING * max(energy.mean(), np.float32(1e-30))
    padded = np.pad(damped, (0, -len(energy) % block_size))
    return np.ascontiguousarray(padded.reshape(-1, block_size).T)


def _best_weighed_fit(units: Floats, energy: Floats) -> Floats:
    """Find the best scale as `_best_fit` does, weighing each element by the energy of its column."""
    if units[0].size == 1:  # numpy adds a lone row in another order, and the bytes must not depend on the tile
        return _best_weighed_fit(np.repeat(units, 2, 1), energy)[:1]
    best = np.full(units.shape[1:], -1, np.float32)
    fit = np.zeros_like(best)
    weights, codes, terms = energy[:, None], np.empty_like(units), np.empty_like(units)
    weighed = units * weights
    for reach in INT4_REACHES:
        np.clip(np.rint(np.multiply(units, np.float32(reach), out=codes), out=codes), -8, 7, out=codes)
        cross = np.multiply(weighed, codes, out=terms).sum(0)
        square = np.multiply(np.square(codes, out=codes), weights, out=terms).sum(0) + np.float32(1e-30)
        gain = cross * cross / square
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(fit, cross / square, where=better)
    return fit


def _best_fit(units: Floats) -> Floats:
    """Return the factor f of least ``|units / UNITS - f * codes|`` along axis 0, over the codes of every reach."""
    best = np.zeros(units.shape[1:], np.float32)
    fit = np.zeros_like(best)
    codes = np.empty_like(units)
    for reach in INT4_REACHES:
        np.clip(np.rint(np.multiply(units, reach / UNITS, out=codes), out=codes), -8, 7, out=codes)
        cross = np.einsum("i...,i...->...", units, codes)
        square = np.maximum(np.einsum("i...,i...->...", codes, codes), np.float32(1))
        gain = cross * cross / square  # how much of |units|^2 the refitted codes explain
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(fit, cross / square, where=better)
    return fit / UNITS
