"""The original's weights, with an eye on what they are multiplied by."""

from __future__ import annotations

from collections.abc import Callable
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
    """Weights that show what they are multiplied by to `see`, and keep a histogram of it where `counts` says so."""

    def __init__(
        self,
        weights: Weights,
        see: Callable[[str, Floats], None] = lambda weight, tokens: None,
        counts: Callable[[str], bool] = lambda weight: False,
    ) -> None:
        self.weights, self.see, self.counts = weights, see, counts
        self.histograms: dict[str, Histogram] = {}

    def product(self, x: Floats, weight: str) -> Floats:
        """See what comes in, and multiply.

        Raises:
            ValueError: It is not finite; the message names the weight.
        """
        tokens = x.reshape(-1, x.shape[-1])
        if not np.isfinite(tokens).all():
            raise ValueError(f"what {weight} is multiplied by is not finite")
        if self.counts(weight):
            self.histograms.setdefault(weight, Histogram()).add(tokens)
        self.see(weight, tokens)
        return self.weights.product(x, weight)

    def vector(self, name: str) -> Floats:
        """Return the vector unobserved."""
        return self.weights.vector(name)
