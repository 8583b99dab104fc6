"""Weights of a user's graph as bytes: a scale a channel, and sums of neighbours that x86 kernels hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LARGEST = 127
# Two products of unsigned and signed bytes fit 16 bits up to this sum of the weights: 255 * 128 < 2^15.
LARGEST_PAIR = 128


@dataclass(frozen=True)
class Codes:
    """Signed bytes of the weights' shape, and their scales, float32, of one on all axes but the channels'."""

    codes: Array
    scale: Array


def encode(
    weights: Array,
    axes: int | tuple[int, ...],
    pairs_along: int | None = None,
    least: Array | None = None,
    *,
    even: bool = False,
) -> Codes:
    """Return the codes of weights.

    Args:
        weights: float32.
        axes: Of the channels, each of which has a scale.
        pairs_along: The axis that a product sums along. Neighbours on it, and on the flattened axes behind it, then
            add up to `LARGEST_PAIR` at most; None where kernels do not saturate.
        least: Scales that are not to be gone below, by channel.
        even: Whether pairs are of the axis alone, and begin at even places, as kernels of matrix products take them.
    """
    kept = (axes,) if isinstance(axes, int) else axes
    others = tuple(axis for axis in range(weights.ndim) if axis not in kept)
    size = np.abs(weights).max(others, keepdims=True) / LARGEST
    if pairs_along is not None:
        size = np.maximum(size, _pairs(weights, pairs_along, others, even=even) / LARGEST_PAIR)
    if least is not None:
        size = np.maximum(size, least.reshape(size.shape))
    scale = np.maximum(size, 1e-30).astype(np.float32)
    steps = weights / scale
    codes = np.clip(np.rint(steps, out=steps), -LARGEST, LARGEST, out=steps).astype(np.int8)
    del steps
    if pairs_along is not None:
        codes = _held(codes, pairs_along, even=even)
    return Codes(codes, scale)


def _pairs(weights: Array, axis: int, others: tuple[int, ...], *, even: bool) -> Array:
    """Return what neighbours of one sign add up to at most, over all but the channels' axes."""
    largest: Array = np.zeros(())
    for sign in (1, -1):
        sizes = np.maximum(sign * weights, 0)
        for along in _axes(axis, weights.ndim, even=even):
            largest = np.maximum(largest, _neighbours(sizes, along, even=even).max(others, keepdims=True))
    return largest


def _axes(axis: int, rank: int, *, even: bool) -> set[int]:
    """Return the axes on which weights are neighbours: the one, and the last of a convolution, which is flattened."""
    return {axis} if even or not axis else {axis, rank - 1}


def _neighbours(sizes: Array, axis: int, *, even: bool) -> Array:
    """Return the sum of each number and the next on an axis, both of which are not 0; 0 for the last of a pair."""
    moved = np.moveaxis(sizes, axis, 0)
    sums = np.zeros_like(moved)
    sums[:-1] = np.where((moved[:-1] > 0) & (moved[1:] > 0), moved[:-1] + moved[1:], 0)
    if even:
        sums[1::2] = 0
    return np.moveaxis(sums, 0, axis)


def _held(codes: Array, axis: int, *, even: bool) -> Array:
    """Return codes whose pairs do not exceed the sum by rounding: the first of such a pair is made one smaller."""
    made = codes.astype(np.int16)
    for along in _axes(axis, made.ndim, even=even):
        for sign in (1, -1):
            over = _neighbours(np.maximum(sign * made, 0), along, even=even) > LARGEST_PAIR
            made -= np.where(over, sign, 0).astype(np.int16)
    return made.astype(np.int8)
