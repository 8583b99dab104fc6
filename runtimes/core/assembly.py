"""Assemble what a decoder takes of a prompt: tokens, the rows of images in their places, and positions.

The runner, the exporter's probes and the streamed original all do it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeglm.runtimes.inputs.positions import Grid, picture_spans, prompt_positions

A = TypeVar("A", bound="Assembly")


@dataclass(frozen=True)
class Assembly:
    """A prompt's tokens, the place of each image among them, and their positions.

    Args:
        tokens: Those of text, and one for each merged patch of an image.
        spans: Where each image begins and ends.
        positions: Of each token: (axes, 1, length).
        begun: How many of the last tokens the answer begins with.
    """

    tokens: list[int]
    spans: list[tuple[int, int]]
    positions: NDArray[np.int64]
    begun: int = 0

    def followed_by(self: A, tokens: Sequence[int]) -> A:
        """Return it with text behind it, such as the beginning of an answer."""
        if not tokens:
            return self
        places = self.positions.max() + np.arange(1, len(tokens) + 1)
        more = np.broadcast_to(places, (*self.positions.shape[:2], len(tokens)))
        return replace(
            self,
            tokens=[*self.tokens, *tokens],
            positions=np.concatenate([self.positions, more], axis=-1),
            begun=self.begun + len(tokens),
        )

    def place(self, hidden: NDArray[Any], features: Sequence[NDArray[Any]], start: int = 0) -> None:
        """Write the features of images over the rows of their tokens.

        Args:
            hidden: The embeddings of the tokens from `start` on: (length - start, hidden).
            features: Of each image that has a token there, (its tokens, hidden).
            start: So many tokens are left out.
        """
        ahead = [span for span in self.spans if span[1] > start]
        for (begin, end), rows in zip(ahead, features, strict=True):
            hidden[max(begin, start) - start : end - start] = rows[max(begin, start) - begin :]


def assemble(tokens: Sequence[int], is_image: Sequence[bool], grids: Sequence[Grid], *, mrope: bool) -> Assembly:
    """Find the images among a prompt's tokens, and count positions.

    Args:
        tokens: Of the prompt.
        is_image: Whether each token stands for a piece of an image.
        grids: Rows and columns of the tokens of each image.
        mrope: Whether positions count time, row and column.

    Raises:
        ValueError: The images are not as many, or not as large, as their places.
    """
    spans = picture_spans(is_image)
    if [stop - start for start, stop in spans] != [rows * columns for rows, columns in grids]:
        raise ValueError(f"{len(spans)} places for {len(grids)} images")
    return Assembly(list(tokens), spans, prompt_positions(is_image, grids if mrope else None))
