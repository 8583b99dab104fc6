"""Random weights of any size in little memory: each matrix is the product of two narrow ones.

They follow from their names, so that two processes have the same ones. A block of real width, whose matrices would
take 0.8 GiB for a model of 9B, is computed in a few MiB. An exchanged, transposed or permuted weight still shows: no
two rows and no two columns of a product are alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
RANK = 8


def factors(name: str, rows: int, columns: int) -> tuple[Floats, Floats]:
    """Return L of (rows, RANK) and R of (RANK, columns), whose product is the matrix called `name`."""
    generator = _generator(name)
    left = generator.standard_normal((rows, RANK), np.float32) * np.float32(RANK**-0.5)
    return left, generator.standard_normal((RANK, columns), np.float32) * np.float32(columns**-0.5)


def values(name: str, shape: Sequence[int]) -> Floats:
    """Return an array for a weight that is no matrix of a layer: near one for a norm, else near zero."""
    generator = _generator(name)
    if name.endswith(".weight") and len(shape) == 1:
        return generator.random(shape, np.float32) * np.float32(1.5) + np.float32(0.25)
    return generator.standard_normal(shape, np.float32) * np.float32(0.3)


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
