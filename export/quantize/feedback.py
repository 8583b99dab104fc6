"""Round a weight's columns one after the other, each error made good by the columns that follow (GPTQ, 2210.17323).

What makes it good is known from the covariance of the columns' inputs. Columns are visited by the energy of their
inputs, the largest first, and keep their places: the scales of their blocks are fixed before. A wide covariance is cut
into tiles along its diagonal, and no error leaves its tile, so that neither memory nor time grows with its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.quantize.rounding import DAMPING, Floats

# Columns of a tile, and those that are rounded one by one.
TILE, STEP = 1024, 32
# Rows that are transposed at once: with more, wide ones push each other out of the processor's cache.
FEW = 16
# Rows that are rounded together, and their bytes at most.
GROUP, GROUP_BYTES = 1024, 16 << 20


@dataclass(frozen=True)
class Tile:
    """The columns of a tile by energy, and how much of each one's error the later ones make good.

    ``order`` is [k], ``shares`` [k, k] in fp16: row i is what an error of one in column ``order[i]``, its distance from
    the weight, adds to the others, zero up to the diagonal.
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
    """Return a tile from the covariance [k, k] of its inputs; without any energy it passes nothing on.

    What errors add to a column is known from a triangle of the covariance itself, if they are distances from the
    weights, not from what was made of these (Babai's nearest plane, 2507.18553): nothing is inverted.
    """
    energy = np.diag(covariance)
    order = np.argsort(-energy, kind="stable")
    damped = covariance[np.ix_(order, order)] + np.diag(np.full(len(order), float(DAMPING) * energy.mean() or 1.0))
    # The covariance is U U^T with U upper: flipped, it is L L^T.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    shares = np.triu(upper / np.diag(upper), 1)
    return Tile(order.astype(np.int32), np.clip(shares, -6e4, 6e4).astype(np.float16))


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
        shares, blocks = _widened(tile.shares), (columns.start + tile.order) // block_size
        for start in range(0, len(weight), group):
            rows = slice(start, min(start + group, len(weight)))
            values = _columns_first(weight[rows, columns], group)[tile.order]
            made, rounded = np.empty((2, *values.shape), np.int8)
            _round(values, np.zeros_like(values), _columns_first(scales[rows], group)[blocks], shares, made, limit)
            rounded[tile.order] = made
            codes[rows, columns] = rounded[:, : rows.stop - start].T
    return codes


def _widened(shares: NDArray[np.float16]) -> Floats:
    """Return the upper triangle of shares [k, k] in fp32; below it there is nothing to be read."""
    wide = np.empty(shares.shape, np.float32)
    for start in range(0, len(shares), STEP):
        wide[start : start + STEP, start:] = shares[start : start + STEP, start:]
    return wide


def _columns_first(rows: Floats, group: int) -> Floats:
    """Return rows [n, k] as [k, group], filled up with ones; a few at a time, which is four times as fast."""
    filled = np.ones((rows.shape[1], group), np.float32)
    for start in range(0, len(rows), FEW):
        filled[:, start : min(start + FEW, len(rows))] = rows[start : start + FEW].T
    return filled


def _round(weights: Floats, owed: Floats, steps: Floats, shares: Floats, codes: NDArray[np.int8], limit: int) -> None:
    """Round columns [k, rows] to codes: the first half, what its errors add to the second, and that.

    Args:
        weights: Replaced by their errors.
        owed: [k, rows], what errors of columns before these add to them.
        steps: [k, rows], the scales.
        shares: [k, k], see `Tile`.
        codes: [k, rows], filled.
        limit: Half the number of codes.
    """
    if len(weights) <= STEP:
        return _round_one_by_one(weights, owed, steps, shares, codes, limit)
    first, second = slice(len(weights) // 2), slice(len(weights) // 2, None)
    _round(weights[first], owed[first], steps[first], shares[first, first], codes[first], limit)
    owed[second] += shares[first, second].T @ weights[first]
    return _round(weights[second], owed[second], steps[second], shares[second, second], codes[second], limit)


def _round_one_by_one(
    weights: Floats, owed: Floats, steps: Floats, shares: Floats, codes: NDArray[np.int8], limit: int
) -> None:
    code, lowest, highest = np.empty(weights.shape[1], np.float32), np.float32(-limit), np.float32(limit - 1)
    for column, (weight, whole, step) in enumerate(zip(weights, owed, steps, strict=True)):
        # Gathering what the columns before it owe takes fewer calls than each of them paying all others.
        np.add(whole, shares[:column, column] @ weights[:column], out=whole)
        np.divide(np.add(whole, weight, out=whole), step, out=code)
        np.minimum(np.maximum(np.rint(code, out=code), lowest, out=code), highest, out=code)
        codes[column] = code
        np.subtract(weight, np.multiply(code, step, out=code), out=weight)
