"""Ranges of every value in a segment of a module, which an NPU's integers need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.calibrate.histogram import Histogram, Range, least_squares, min_max

# How a range is chosen, by the bits of the codes: clipping pays where the steps are coarse.
CHOOSE = {8: least_squares, 16: min_max}
Ranges = dict[int, dict[str, Range]]


class SeenValues:
    """Histograms of one segment's values, which `ranges` reduces to what a quantizer takes."""

    def __init__(self) -> None:
        self.histograms: dict[str, Histogram] = {}

    def see(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Count the fp32 ones of some values by name.

        Raises:
            ValueError: One is not finite; the message names it.
        """
        for name, array in values.items():
            if array.dtype != np.float32 or not array.size:
                continue
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
            self.histograms.setdefault(name, Histogram()).add(array)

    def ranges(self) -> Ranges:
        """Return the ranges by bits and name."""
        return {bits: {name: choose(seen) for name, seen in self.histograms.items()} for bits, choose in CHOOSE.items()}
