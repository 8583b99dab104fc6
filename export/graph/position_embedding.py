"""The vision tower's position embedding for one grid of patches, computed once at export."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Keys' cubic convolution as torch's grid_sample has it (aten/src/ATen/native/UpSample.h).
A = -0.75


def position_embedding(table: Floats, grid: tuple[int, int], merge: int) -> Floats:
    """Interpolate a square table bicubically to `grid`, in the order of patches.

    Args:
        table: Learned positions (side * side, hidden).
        grid: Rows and columns of patches.
        merge: Patches of a merge x merge block stand together.

    Returns:
        (rows * columns, hidden), as `Glm4vVisionEmbeddings` adds it (transformers 5.23).
    """
    side = round(len(table) ** 0.5)
    rows, columns = (_weights(count, side) for count in grid)
    square = table.reshape(side, side, -1).astype(np.float64)
    image = np.einsum("ri,ijh,cj->rch", rows, square, columns, optimize=True)
    blocks = image.reshape(grid[0] // merge, merge, grid[1] // merge, merge, -1).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks.reshape(grid[0] * grid[1], -1), np.float32)


def _weights(count: int, side: int) -> NDArray[np.float64]:
    """(count, side): what each of `side` samples gives to each of `count`; beyond the border its last one repeats."""
    at = (np.arange(count) + 0.5) / count * side - 0.5
    base = np.floor(at).astype(int)
    weights = np.zeros((count, side))
    for tap in range(-1, 3):
        share = _cubic(np.abs(at - (base + tap)))
        np.add.at(weights, (np.arange(count), np.clip(base + tap, 0, side - 1)), share)
    return weights


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = ((A * x - 5 * A) * x + 8 * A) * x - 4 * A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
