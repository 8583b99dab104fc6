"""Means of what nodes take, and the part of rounded weights' error that they make, which a bias takes away.

Behind a Relu values are positive, so errors of a channel's weights add up instead of cancelling out (Nagel et al.,
arXiv 1906.04721). A mean that samples do not agree on is no mean: it is made smaller by what it varies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.calibrate.histogram import Histogram

Array = NDArray[Any]
# Axes that nodes sum along: the channels of an image, the last of a product's inputs.
CHANNELS, LAST = 1, -1
# Values of an array that are counted: a histogram of so many is as good as one of all.
COUNTED = 1 << 18
Means = Mapping[int, Array]


@dataclass(frozen=True)
class Mean:
    """Sums over arrays of each one's means along an axis, and of their squares."""

    count: int
    total: Array
    squares: Array

    @classmethod
    def of(cls, array: Array, axis: int) -> Mean:
        """Return that of one array."""
        kept = axis % array.ndim
        mean = array.mean(tuple(other for other in range(array.ndim) if other != kept), dtype=np.float64)
        return cls(1, mean, np.square(mean))

    def plus(self, other: Mean) -> Mean:
        """Return that of the arrays of both."""
        return Mean(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def steady(self) -> Array:
        """The mean of all arrays, smaller by the share of it that chance makes: 0 where there is one array."""
        mean = self.total / self.count
        if self.count < 2:
            return np.zeros_like(mean)
        varies = (self.squares / self.count - np.square(mean)).sum() / (self.count - 1)
        steady: Array = mean * max(0.0, 1 - varies / max(float(np.square(mean).sum()), 1e-60))
        return steady


class Values(Histogram):
    """A histogram of a value, with its means along the axes that nodes sum along."""

    def __init__(self) -> None:
        super().__init__()
        self._means: dict[int, Mean | None] = {}

    def take(self, array: NDArray[np.float32]) -> None:
        """Count an array, without what is not finite."""
        known = np.isfinite(array)
        finite = array if known.all() else array[known]
        if finite.size:
            self._count(finite)
        for axis in (CHANNELS, LAST) if array.ndim > 1 and array.size else ():
            self._mean(axis, Mean.of(array, axis) if finite is array else None)

    def _count(self, finite: NDArray[np.float32]) -> None:
        """Count values: of many one of each few neighbours, which stands for them, and the least and the largest."""
        flat, step, part = finite.reshape(-1), -(-finite.size // COUNTED), Histogram()
        if step > 1:  # any of them, as every so manieth would be of one column or channel
            starts = np.arange(0, flat.size - step, step)
            part.add(flat[starts + np.random.default_rng(0).integers(0, step, starts.size)])
            part.counts *= step
            flat = np.array([flat.min(), flat.max()])
        part.add(flat)
        super().merge(part)

    def merge(self, other: Histogram) -> None:
        """Count what another has counted too."""
        super().merge(other)
        for axis, mean in other._means.items() if isinstance(other, Values) else ():
            self._mean(axis, mean)

    def means(self) -> Means:
        """Return the mean along each axis; an axis of more than one size has none."""
        return {axis: mean.steady for axis, mean in self._means.items() if mean is not None}

    def _mean(self, axis: int, mean: Mean | None) -> None:
        before = self._means.get(axis, mean)
        if before is None or mean is None or before.total.shape != mean.total.shape:
            self._means[axis] = None
        else:
            self._means[axis] = before.plus(mean) if axis in self._means else mean


def shift_of(lost: Array, means: Means | None, groups: int = 1) -> Array | float:
    """Return what a channel's output has lost on average by rounded weights.

    Args:
        lost: The weights less the rounded ones: (inputs, outputs) of a product, (outputs, inputs of a group, …) of a
            convolution.
        means: Of the node's input.
        groups: Of a convolution.
    """
    mean = (means or {}).get(CHANNELS if lost.ndim > 2 else LAST)
    if mean is None:
        return 0.0
    if lost.ndim == 2:
        return mean @ lost if mean.size == lost.shape[0] else 0.0
    if mean.size != groups * lost.shape[1]:
        return 0.0
    sums = lost.reshape(groups, -1, *lost.shape[1:]).sum(tuple(range(3, lost.ndim + 1)))
    shift: Array = np.einsum("goi,gi->go", sums, mean.reshape(groups, -1)).reshape(-1)
    return shift
