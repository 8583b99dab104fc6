"""Positions of a prompt's tokens: one number each, or with M-RoPE three (time, row, column)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int]  # rows and columns


def prompt_positions(image_tokens: Sequence[bool], grids: Sequence[Grid] | None) -> NDArray[np.int64]:
    """Return the positions of a prompt with any number of pictures.

    Args:
        image_tokens: Whether each token stands for a piece of a picture; those of one picture stand together, and
            other tokens between those of two.
        grids: Merged patches of each picture; None for a model without M-RoPE.

    Returns:
        (3, 1, length): a picture's tokens count their row and column from where it begins, and the text behind it
        goes on after the larger of the two (transformers 5.23, ``Glm4vModel.get_rope_index``). Without M-RoPE,
        (1, 1, length).
    """
    length = len(image_tokens)
    if grids is None:
        return np.arange(length, dtype=np.int64)[None, None]
    positions = np.tile(np.arange(length, dtype=np.int64), (3, 1, 1))
    for (start, stop), (rows, columns) in zip(picture_spans(image_tokens), grids, strict=True):
        place = np.indices((1, rows, columns)).reshape(3, -1)
        positions[:, 0, stop:] += max(rows, columns) - (stop - start)
        positions[:, 0, start:stop] = positions[0, 0, start] + place
    return positions


def causal_mask(count: int, total: int) -> NDArray[np.float32]:
    """Return what is added to the scores of the last `count` of `total` tokens, so that none sees a later one.

    (1, 1, count, total), as decoders take it, most of them; -1e4 hides a token, and fits into fp16.
    """
    mask = np.zeros((1, 1, count, total), np.float32)
    if count > 1:
        mask[..., total - count :] = np.triu(np.full((count, count), -1e4, np.float32), 1)
    return mask


def picture_spans(image_tokens: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where each picture begins and ends among the tokens."""
    edges = np.flatnonzero(np.diff([0, *image_tokens, 0])).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
