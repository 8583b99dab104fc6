"""Round a weight's columns one after the other, each error made good by the columns that follow (GPTQ, 2210.17323).

What makes it good is known from the covariance of the columns' inputs. Columns are visited by the energy of their
inputs, the largest first, and keep their places: the scales of their blocks are fixed before. A wide covariance is cut
into tiles along its diagonal, and no error leaves its tile, so that neither memory nor time grows with its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.quantize.rounding import DAMPING, Floats

# Columns of a tile, and those whose errors reach the rest of it in one product.
TILE, STEP = 1024, 64
# Rows that are rounded together, and their bytes at most.
GROUP, GROUP_BYTES = 1024, 16 << 20
# Up to here a triangle is inverted as a whole.
HALVED = 64


@dataclass(frozen=True)
class Tile:
    """The columns of a tile by energy, and how much of each one's error the later ones make good.

    ``order`` is [k], ``shares`` [k, k] in fp16: row i is what an error of one in column ``order[i]`` adds to the
    others, zero up to the diagonal.
    """

    order: NDArray[np.int32]
    shares: NDArray[np.float16]


@dataclass(frozen=True)
class Feedback:
    """The tiles of a matrix of so many columns, in a file."""

    file: Path
    offset: int
    columns: int

    def tiles(self) -> Iterator[tuple[slice, Tile]]:
        """Yield the columns of each tile, and the tile."""
        offset = self.offset
        for columns in tile_slices(self.columns):
            size = columns.stop - columns.start
            order = np.fromfile(self.file, np.int32, size, offset=offset)
            shares = np.fromfile(self.file, np.float16, size * size, offset=offset + 4 * size)
            yield columns, Tile(order, shares.reshape(size, size))
            offset += tile_bytes(size)


@dataclass(frozen=True)
class Inputs:
    """The facts that a calibration has of what a matrix is multiplied by.

    Args:
        energy: [K], mean squares, behind `factor`.
        factor: [K], what the inputs are divided by, and the columns are multiplied by before they are rounded.
        feedback: How errors are made good, where that is known.
    """

    energy: Floats
    factor: Floats | None = None
    feedback: Feedback | None = None

    @classmethod
    def divided(cls, energy: Floats, factor: Floats | None) -> Inputs:
        """Return those of inputs of so much energy that are divided by a factor."""
        if factor is None:
            return cls(energy)
        energy = (energy / np.square(factor)).astype(np.float32)
        return cls(energy, factor)


def tile_slices(columns: int) -> list[slice]:
    """Return the columns of each tile: as equal as whole blocks allow."""
    count = -(-columns // TILE)
    size = -(-columns // count // 128) * 128
    return [slice(start, min(columns, start + size)) for start in range(0, columns, size)]


def tile_bytes(size: int) -> int:
    """Return the bytes of a tile of so many columns in a file."""
    return 4 * size + 2 * size * size


def group_rows(columns: int) -> int:
    """Return how many rows of a matrix are rounded together.

    They are always so many, filled up with others: a product's last digits depend on its shape, and bytes must not
    depend on how a matrix is cut into chunks.
    """
    return max(1, min(GROUP, GROUP_BYTES // (4 * columns)))


def make_tile(covariance: NDArray[np.float64]) -> Tile:
    """Return a tile from the covariance [k, k] of its inputs; without any energy it passes nothing on."""
    energy = np.diag(covariance)
    order = np.argsort(-energy, kind="stable")
    damped = covariance[np.ix_(order, order)] + np.diag(np.full(len(order), float(DAMPING) * energy.mean() or 1.0))
    # The inverse is U^T U with U upper; flipped, the covariance is L L^T, and U its inverse, flipped back.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    upper = invert_lower(lower)[::-1, ::-1]
    shares = np.triu(upper / np.diag(upper)[:, None], 1)
    return Tile(order.astype(np.int32), np.clip(shares, -6e4, 6e4).astype(np.float16))


def invert_lower(lower: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the inverse of a lower triangle [k, k]: by halves, in a sixth of the time of a general one."""
    if len(lower) <= HALVED:
        return np.linalg.inv(lower)
    half, made = len(lower) // 2, np.zeros_like(lower)
    first, last = invert_lower(lower[:half, :half]), invert_lower(lower[half:, half:])
    made[:half, :half], made[half:, half:] = first, last
    made[half:, :half] = -(last @ lower[half:, :half]) @ first
    return made


def save_tiles(tiles: Sequence[Tile], file: Path, columns: int) -> Feedback:
    """Append tiles to a file. Raises OSError."""
    with open(file, "ab") as output:
        offset = output.tell()
        for tile in tiles:
            output.write(tile.order.tobytes() + tile.shares.tobytes())
    return Feedback(file, offset, columns)


def codes_with_feedback(
    weight: Floats, scales: Floats, feedback: Feedback, block_size: int, limit: int
) -> NDArray[np.int8]:
    """Return the codes of rows, -limit to limit - 1, whose errors in a row make each other good.

    Args:
        weight: [n, K], not changed.
        scales: [n, blocks], as they are stored.
        feedback: Of the K columns.
        block_size: Columns of a block.
        limit: Half the number of codes.

    Returns:
        [n, K]. A row's codes do not depend on the others.
    """
    codes, group = np.empty(weight.shape, np.int8), group_rows(weight.shape[1])
    for columns, tile in feedback.tiles():
        shares, blocks = tile.shares.astype(np.float32), (columns.start + tile.order) // block_size
        for start in range(0, len(weight), group):
            rows = slice(start, min(start + group, len(weight)))
            values = _columns_first(weight[rows, columns], group)[tile.order]
            _round(values, _columns_first(scales[rows], group)[blocks], shares, limit)
            rounded = np.empty(values.shape, np.int8)
            rounded[tile.order] = values
            codes[rows, columns] = rounded[:, : rows.stop - start].T
    return codes


def _columns_first(rows: Floats, group: int) -> Floats:
    """Return rows [n, k] as [k, group], filled up with ones."""
    filled = np.ones((rows.shape[1], group), np.float32)
    filled[:, : len(rows)] = rows.T
    return filled


def _round(values: Floats, steps: Floats, shares: Floats, limit: int) -> None:
    """Replace columns [k, rows] by their codes."""
    errors, code = np.empty((STEP, values.shape[1]), np.float32), np.empty(values.shape[1], np.float32)
    for start in range(0, len(values), STEP):
        stop = min(start + STEP, len(values))
        for column in range(start, stop):
            value, step, error = values[column], steps[column], errors[column - start]
            # Gathering what the columns before it owe takes fewer calls than each of them paying all others.
            value -= shares[start:column, column] @ errors[: column - start]
            np.rint(np.divide(value, step, out=code), out=code)
            np.minimum(np.maximum(code, -limit, out=code), limit - 1, out=code)
            np.subtract(value, np.multiply(code, step, out=error), out=error)
            value[:] = code
        values[stop:] -= shares[start:stop, stop:].T @ errors[: stop - start]
