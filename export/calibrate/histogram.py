"""Histogram of a tensor in bounded memory, and the ranges that an 8-bit quantizer may give it.

min-max keeps everything, percentile cuts the tails, and mean-squared-error finds the cut at which rounding inside and
clipping outside cost the least together (Banner et al., arXiv 1810.05723).
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

BINS = 4096
# Values that are counted at once: a value's bin takes several times its own bytes.
PIECE = 1 << 18
PERCENTILE = 99.99
LEVELS = 255
# Of the whole range, what the search tries on each side.
SHRINKS = np.linspace(1.0, 0.05, 39)

Range = tuple[float, float]


class Histogram:
    """Counts over ``-limit … limit``, which doubles, by pairs of bins becoming one, when something larger comes."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values, all of them finite."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high, 1e-30)
        if not self.limit:
            self.limit = float(2 ** np.ceil(np.log2(largest)))
        while self.limit < largest:
            self._double()
        flat = values.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            bins = ((piece / np.float32(self.limit) + 1) * (BINS // 2)).astype(np.int64)
            self.counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Count what another has counted too."""
        parts = [self, copy.deepcopy(other)]
        limit = max(part.limit for part in parts)
        for part in parts:
            part.limit = part.limit or limit
            while part.limit < limit:
                part._double()
        self.counts += parts[1].counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return (np.arange(BINS) + 0.5) / (BINS // 2) * self.limit - self.limit

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts[:] = 0
        self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
        self.limit *= 2


def min_max(seen: Histogram) -> Range:
    """Return all that was seen, and zero."""
    return min(seen.low, 0.0), max(seen.high, 0.0)


def percentile(seen: Histogram, share: float = PERCENTILE) -> Range:
    """Return what holds `share` percent of the values, half of the others on either side."""
    total, tail = np.cumsum(seen.counts), (100 - share) / 200
    low = seen.centres[np.searchsorted(total, tail * total[-1])]
    high = seen.centres[np.searchsorted(total, (1 - tail) * total[-1])]
    whole = min_max(seen)
    return max(min(float(low), 0.0), whole[0]), min(max(float(high), 0.0), whole[1])


def least_squares(seen: Histogram) -> Range:
    """Return the range of least squared error: each side is shrunk in turn."""
    low, high = min_max(seen)
    for _ in range(2):
        high = min((high * shrink for shrink in SHRINKS), key=lambda top: squared_error(seen, (low, top)))
        low = min((low * shrink for shrink in SHRINKS), key=lambda bottom: squared_error(seen, (bottom, high)))
    return float(low), float(high)


def squared_error(seen: Histogram, range_: Range) -> float:
    """Return the sum of squared errors of what was seen, rounded to `LEVELS` steps of a range and clipped to it."""
    low, high = range_
    step = (high - low) / LEVELS or 1e-30
    inside = np.clip(np.rint((seen.centres - low) / step), 0, LEVELS) * step + low
    return float((np.square(inside - seen.centres) * seen.counts).sum())
