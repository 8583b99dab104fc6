"""Answers of an original that is streamed: another model drafts them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgeglm.export.samples.screenshots import Sample

# Of an answer to a screen, the original's and the bundle's.
MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class Drafter:
    """The model that drafts answers.

    Args:
        ends: The tokens that end an answer.
        draft: Whole answers to samples, each with the tokens that it is to begin with; the last token is one of `ends`,
            unless the answer is as long as can be.
    """

    ends: Collection[int]
    draft: Callable[[Sequence[Sample], Sequence[Sequence[int]]], Sequence[Sequence[int]]]
