"""Set weights of a matrix to zero, and have those that stay make up for it (SparseGPT, 2301.00774).

Columns go from left to right. What the zeros of one cost is made good by the columns behind it, as their inputs'
covariance says; a wide covariance is cut into tiles along its diagonal (`quantize.feedback`). Without a covariance
weights go by their size times their input's energy, and nothing makes up for them (Wanda, 2306.11695).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.quantize.rounding import DAMPING, Floats
from edgeglm.manifest import TWO_OF_FOUR
from edgeglm.units import parse_percent

WRITE = "write 2:4, or a share such as 50%"
# Columns whose zeros are chosen together.
STEP = 128
# Up to here a triangle is inverted as a whole.
HALVED = 64


@dataclass(frozen=True)
class Pattern:
    """A pattern of zeros.

    Args:
        share: Of the weights.
        grouped: Whether it is two of every four neighbours in a row.
    """

    share: float
    grouped: bool


@dataclass(frozen=True)
class Tile:
    """Columns [k] of a matrix, and what is known of their inputs.

    Args:
        columns: Where they lie.
        importance: [k], what a weight is multiplied by to say what its loss costs.
        shares: [k, k], row i is what an error of one in column i adds to those behind it; None where unknown.
    """

    columns: slice
    importance: Floats
    shares: Floats | None = None


def parse_sparse(text: str) -> Pattern:
    """Return the pattern of ``--sparse``. Raises UsageError."""
    if text == TWO_OF_FOUR:
        return Pattern(0.5, grouped=True)
    if ":" in text:
        raise UsageError(f"--sparse {text}", "is not the pattern of which GPUs skip half", WRITE)
    try:
        share = parse_percent(text)
    except UsageError as error:
        raise UsageError(f"--sparse {text}", f"{error.what} {error.why}", WRITE) from error
    if share in (0, 1):
        raise UsageError(f"--sparse {text}", "makes no weight zero" if share == 0 else "makes all weights zero", WRITE)
    return Pattern(share, grouped=False)


def check_shapes(pattern: Pattern, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that rows are whole groups of four, by matrix. Raises UnsupportedError."""
    for name, (_, columns) in shapes.items() if pattern.grouped else ():
        if columns % 4:
            why = f"{name} has {columns} columns, which are no groups of four"
            raise UnsupportedError(f"--sparse {TWO_OF_FOUR}", why, "give a share such as 50%")


def tile_of_energy(columns: slice, energy: NDArray[np.float64]) -> Tile:
    """Return a tile of the mean squares [k] of its inputs."""
    return Tile(columns, np.sqrt(energy).astype(np.float32))


def tile_of_covariance(columns: slice, covariance: NDArray[np.float64]) -> Tile:
    """Return a tile of the covariance [k, k] of its inputs."""
    damping = float(DAMPING) * max(float(np.diag(covariance).mean()), 1e-30)
    damped = covariance + np.diag(np.full(len(covariance), damping))
    # The inverse is U^T U with U upper; flipped, the covariance is L L^T, and U its inverse, flipped back.
    upper = _invert_lower(np.linalg.cholesky(damped[::-1, ::-1]))[::-1, ::-1]
    diagonal = np.diag(upper)
    shares = np.triu(upper / diagonal[:, None], 1).astype(np.float32)
    return Tile(columns, (1 / diagonal).astype(np.float32), shares)


def with_zeros(weight: Floats, tiles: Sequence[Tile], pattern: Pattern) -> Floats:
    """Return rows [n, K] with zeros, and the other weights as they make up for them best."""
    made = np.empty_like(weight)
    for tile in tiles:
        values = weight[:, tile.columns].T.copy()
        _clear(values, tile, pattern)
        made[:, tile.columns] = values.T
    return made


def _clear(values: Floats, tile: Tile, pattern: Pattern) -> None:
    """Give columns [k, n] their zeros."""
    step = 4 if pattern.grouped else STEP
    for start in range(0, len(values), STEP):
        stop = min(start + STEP, len(values))
        errors = np.empty((stop - start, values.shape[1]), np.float32)
        for column in range(start, stop):
            inside = (column - start) % step
            if inside == 0:
                rows = slice(column, min(column + step, stop))
                goes = _cheapest(np.abs(values[rows]) * tile.importance[rows, None], pattern)
            errors[column - start] = error = np.where(goes[inside], values[column], 0)
            values[column] = np.where(goes[inside], 0, values[column])
            if tile.shares is not None:
                values[column + 1 : stop] -= tile.shares[column, column + 1 : stop, None] * error
        if tile.shares is not None:
            values[stop:] -= tile.shares[start:stop, stop:].T @ errors


def _cheapest(costs: Floats, pattern: Pattern) -> NDArray[np.bool_]:
    """Return which of [k, n] go: two of four of each column, or the share of all."""
    if pattern.grouped:
        return costs.argsort(0, kind="stable").argsort(0) < 2
    order = costs.ravel().argsort(kind="stable")
    goes = np.zeros(costs.size, bool)
    goes[order[: round(pattern.share * costs.size)]] = True
    return goes.reshape(costs.shape)


def _invert_lower(lower: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the inverse of a lower triangle [k, k]: by halves, in a sixth of the time of a general one."""
    if len(lower) <= HALVED:
        return np.linalg.inv(lower)
    half, made = len(lower) // 2, np.zeros_like(lower)
    first, last = _invert_lower(lower[:half, :half]), _invert_lower(lower[half:, half:])
    made[:half, :half], made[half:, half:] = first, last
    made[half:, :half] = -(last @ lower[half:, :half]) @ first
    return made
