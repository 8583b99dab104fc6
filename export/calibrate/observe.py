"""The original's weights, with an eye on what they are multiplied by."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.calibrate.histogram import Histogram

Floats = NDArray[np.float32]


class Weights(Protocol):
    """The weights that `prove.reference` computes with."""

    def product(self, x: Floats, weight: str) -> Floats:
        """Return ``x W^T`` over the last axis."""

    def vector(self, name: str) -> Floats:
        """Return a bias or norm."""


class Observed:
    """Weights that keep, by name, a histogram of what they are multiplied by, and each input channel's mean square.

    The latter is the diagonal of the Hessian of the output's error, by which rounding errors of a column count (AWQ,
    arXiv 2306.00978; GPTQ, arXiv 2210.17323, keeps the whole matrix).
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.histograms: dict[str, Histogram] = {}
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}

    def product(self, x: Floats, weight: str) -> Floats:
        """See what comes in, and multiply.

        Raises:
            ValueError: It is not finite; the message names the weight.
        """
        tokens = x.reshape(-1, x.shape[-1])
        if not np.isfinite(tokens).all():
            raise ValueError(f"what {weight} is multiplied by is not finite")
        self.histograms.setdefault(weight, Histogram()).add(tokens)
        self.sums[weight] = self.sums.get(weight, 0.0) + np.square(tokens, dtype=np.float64).sum(0)
        self.counts[weight] = self.counts.get(weight, 0) + len(tokens)
        return self.weights.product(x, weight)

    def vector(self, name: str) -> Floats:
        """Return the vector unobserved."""
        return self.weights.vector(name)

    def energies(self) -> dict[str, Floats]:
        """Return the mean squares by the weight's name: [columns]."""
        return {name: (total / self.counts[name]).astype(np.float32) for name, total in self.sums.items()}
