"""The next token from logits: greedy, or sampled reproducibly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. The defaults are the bundle's."""

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


class Sampler:
    """Chooses tokens; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling, seed: int = 0) -> None:
        self.sampling, self.random = sampling, np.random.default_rng(seed)

    def choose(self, logits: NDArray[np.float32], seen: Sequence[int]) -> int:
        """The next token after those `seen`, prompt and answer."""
        scores = logits.astype(np.float64)
        if self.sampling.repetition_penalty != 1.0:  # as transformers' RepetitionPenaltyLogitsProcessor
            ids = np.unique(np.asarray(seen, np.int64))
            penalty = self.sampling.repetition_penalty
            scores[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
        if self.sampling.temperature == 0:
            return int(scores.argmax())
        scores = (scores - scores.max()) / self.sampling.temperature
        shares = np.exp(scores) / np.exp(scores).sum()
        return int(self.random.choice(len(shares), p=self._nucleus(shares)))

    def _nucleus(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Only the likeliest tokens that together reach top_p."""
        order = np.argsort(-shares)
        before = np.cumsum(shares[order]) - shares[order]
        kept = np.zeros_like(shares)
        keep = order[before < self.sampling.top_p]
        kept[keep] = shares[keep]
        kept /= kept.sum()
        return kept
