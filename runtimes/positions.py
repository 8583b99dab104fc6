"""Positions of a prompt's tokens: one number each, or with M-RoPE three (time, row, column)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def prompt_positions(image_tokens: Sequence[bool], grid: tuple[int, int] | None) -> NDArray[np.int64]:
    """Positions of a prompt with at most one picture.

    Args:
        image_tokens: Whether each token stands for a piece of the picture; these stand together.
        grid: Rows and columns of merged patches; None for a model without M-RoPE.

    Returns:
        (3, 1, length): a picture's tokens count their row and column from where it begins, and the text behind it
        goes on after the larger of the two (transformers 5.23, ``Glm4vModel.get_rope_index``). Without M-RoPE,
        (1, 1, length).
    """
    length = len(image_tokens)
    if grid is None:
        return np.arange(length, dtype=np.int64)[None, None]
    positions = np.tile(np.arange(length, dtype=np.int64), (3, 1, 1))
    where = np.flatnonzero(image_tokens)
    if len(where):
        rows, columns = grid
        start, stop = int(where[0]), int(where[-1]) + 1
        place = np.indices((1, rows, columns)).reshape(3, -1)
        positions[:, 0, start:stop] = start + place
        positions[:, 0, stop:] += max(rows, columns) - (stop - start)
    return positions
