"""Second moments of what a matrix is multiplied by, and the matrix that makes up best for columns that go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.compress.parts import Indices
from edgeglm.export.model import Rows
from edgeglm.export.quantize.rounding import DAMPING, Floats

# Rows of a matrix that are computed at once.
ROWS = 256


class Moments:
    """The energy of the columns of a matrix's inputs, and with `covariance` their products: [columns, columns]."""

    def __init__(self, columns: int, *, covariance: bool) -> None:
        self.energy = np.zeros(columns)
        self.sums = np.zeros((columns, columns), np.float32) if covariance else None
        self.count = 0

    def add(self, tokens: Floats) -> None:
        """Count tokens [n, columns]."""
        self.energy += np.square(tokens, dtype=np.float64).sum(0)
        self.count += len(tokens)
        if self.sums is not None:
            self.sums += tokens.T @ tokens

    def refit(self, source: Rows, weight: str, kept: Indices) -> Floats:
        """Return the columns that stay, changed so that the products err least without the others: [rows, kept].

        They are the least squares over all tokens, ``W C[:, kept] C[kept, kept]^-1``, with damping.

        Args:
            source: The original's weights.
            weight: The matrix.
            kept: The numbers of the columns that stay.
        """
        assert self.sums is not None
        inner = self.sums[np.ix_(kept, kept)].astype(np.float64)
        inner[np.diag_indices_from(inner)] += float(DAMPING) * max(float(np.diag(inner).mean()), 1e-30)
        share = np.linalg.solve(inner, self.sums[kept].astype(np.float64)).astype(np.float32)
        rows = source.find(weight).shape[0]
        fitted = np.empty((rows, len(kept)), np.float32)
        for start in range(0, rows, ROWS):
            stop = min(start + ROWS, rows)
            fitted[start:stop] = source.rows(weight, start, stop) @ share.T
        return fitted


def column_sums(source: Rows, weight: str, power: int) -> NDArray[np.float64]:
    """Return the sum of a matrix's absolute weights, or of their squares, by column."""
    rows, columns = source.find(weight).shape
    total = np.zeros(columns)
    for start in range(0, rows, ROWS):
        values = source.rows(weight, start, min(start + ROWS, rows)).astype(np.float64)
        total += (np.abs(values) ** power).sum(0)
    return total


def row_sums(source: Rows, weight: str) -> NDArray[np.float64]:
    """Return the sum of a tensor's absolute weights by row."""
    rows = source.find(weight).shape[0]
    total = np.empty(rows)
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        total[start:stop] = np.abs(source.rows(weight, start, stop)).reshape(stop - start, -1).sum(1, dtype=np.float64)
    return total
