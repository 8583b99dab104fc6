"""The next token from logits: greedy, or sampled reproducibly.

The settings and their order are those of transformers' `generate` (5.23, GenerationMixin): first what every answer is
held to, then, where tokens are drawn, temperature, top k, top p, min p and typical p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeglm.manifest import Generation

Scores = NDArray[np.float64]
# Below it the likeliest token is taken, as in vLLM: scores over a smaller one are not finite.
LEAST_TEMPERATURE = 1e-5
# Settings that requests have, and no checkpoint.
OPENAI = {"frequency_penalty", "presence_penalty"}


@dataclass(frozen=True)
class Sampling:
    """The settings that choose the next token; temperature 0 is greedy, and top k of 0 is all.

    `suppress_tokens` never come, `begin_suppress_tokens` not first, `bad_words_ids` not as wholes, and no tokens of
    `no_repeat_ngram_size` in a row twice; 0 is no limit. The repetition penalty counts prompt and answer, OpenAI's
    frequency and presence penalties the answer alone.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    bad_words_ids: Sequence[Sequence[int]] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @classmethod
    def of(cls, generation: Generation) -> Sampling:
        """Return a bundle's own."""
        return cls(**{name: getattr(generation, name) for name in cls.__dataclass_fields__.keys() - OPENAI})

    @cached_property
    def takes_likeliest(self) -> bool:
        """Whether nothing but a grammar keeps the likeliest token from being chosen."""
        penalties = self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty
        bans = self.suppress_tokens or self.begin_suppress_tokens or self.bad_words_ids or self.no_repeat_ngram_size
        return self.temperature < LEAST_TEMPERATURE and not penalties and not bans


class Allowing(Protocol):
    """Knows which tokens may come next, such as a grammar's `Guide`."""

    def takes(self, token: int) -> bool:
        """Return whether a token may come next; False also where only all of them together tell."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """Return which tokens may come next, (vocabulary); None where any may."""


class Sampler:
    """Chooses the tokens of one answer; the same seed and logits give the same tokens.

    Attributes:
        scores: Whether the logits of forced tokens are wanted too.
    """

    scores = False

    def __init__(self, sampling: Sampling, seed: int = 0) -> None:
        self.sampling, self._seed = sampling, seed
        self.chosen = 0

    @cached_property
    def random(self) -> np.random.Generator:
        """Generator of what tokens are drawn with; numpy imports it when it is asked for first."""
        return np.random.default_rng(self._seed)

    def choose(self, logits: NDArray[np.float32], seen: Sequence[int], guide: Allowing | None = None) -> int:
        """Return the next token after those `seen`, prompt and answer; one that the guide allows, if there is one."""
        if self.sampling.takes_likeliest:
            token = int(logits.argmax())
            if guide is None or guide.takes(token):  # else all that may come are compared
                self.chosen += 1
                return token
        scores = self.allow(logits.astype(np.float64), seen, guide.allowed() if guide else None)
        self.chosen += 1
        if self.sampling.temperature < LEAST_TEMPERATURE or not np.isfinite(scores.max()):
            return int(scores.argmax())
        return self._draw(self.warp(scores))

    def force(self, token: int, logits: NDArray[np.float32] | None = None) -> None:
        """Take a token that could be no other; penalties count it."""
        self.chosen += 1

    def _draw(self, scores: Scores) -> int:
        """Return the token that `Generator.choice` would draw, which checks all shares again."""
        ends = _shares(scores).cumsum()
        ends /= ends[-1]
        return int(ends.searchsorted(self.random.random(), side="right"))

    def allow(self, scores: Scores, seen: Sequence[int], allowed: NDArray[np.bool_] | None = None) -> Scores:
        """Return the scores with the penalty for repetition, and -inf for what may not come now."""
        sampling, tokens = self.sampling, np.asarray(seen, np.int64)
        if sampling.repetition_penalty != 1.0:
            ids, penalty = np.unique(tokens), sampling.repetition_penalty
            scores[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
        if (sampling.frequency_penalty or sampling.presence_penalty) and self.chosen:
            ids, counts = np.unique(tokens[-self.chosen :], return_counts=True)
            scores[ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        banned = [*sampling.suppress_tokens, *(() if self.chosen else sampling.begin_suppress_tokens)]
        banned += [word[-1] for word in sampling.bad_words_ids if _ends_with(tokens, word[:-1])]
        if sampling.no_repeat_ngram_size:
            banned += _repeats(tokens, sampling.no_repeat_ngram_size)
        within = scores if allowed is None else np.where(allowed, scores, -np.inf)
        kept = _without(within, np.array([token for token in banned if token < len(scores)], np.intp))
        # Where all that a grammar allows is banned, the grammar goes before.
        return kept if allowed is None or np.isfinite(kept.max()) else within

    def warp(self, scores: Scores) -> Scores:
        """Return the scores that tokens are drawn by, -inf for those that are not."""
        sampling = self.sampling
        scores = scores / sampling.temperature
        if 0 < sampling.top_k < len(scores):
            scores = np.where(scores < np.partition(scores, -sampling.top_k)[-sampling.top_k], -np.inf, scores)
        if sampling.top_p < 1.0:
            scores = _nucleus(scores, sampling.top_p)
        if sampling.min_p > 0:
            shares = _shares(scores)
            scores = np.where(shares < sampling.min_p * shares.max(), -np.inf, scores)
        return _typical(scores, sampling.typical_p) if sampling.typical_p < 1.0 else scores


def _ends_with(tokens: NDArray[np.int64], beginning: Sequence[int]) -> bool:
    return len(beginning) <= len(tokens) and list(tokens[len(tokens) - len(beginning) :]) == list(beginning)


def _repeats(tokens: NDArray[np.int64], size: int) -> list[int]:
    """Return what would make the last `size` tokens a row that has been."""
    if len(tokens) < size:
        return []
    rows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    return rows[(rows[:, :-1] == tokens[len(tokens) - size + 1 :]).all(1), -1].tolist()  # type: ignore[no-any-return]


def _shares(scores: Scores) -> Scores:
    exponents = np.exp(scores - scores.max())
    shares: Scores = exponents / exponents.sum()
    return shares


def _nucleus(scores: Scores, top_p: float) -> Scores:
    """Keep the likeliest tokens that together reach `top_p`, and one at least.

    Tokens so unlikely that all others reach it without them are not sorted: of a large vocabulary that is most of them.
    """
    shares = _shares(scores)
    likely = np.flatnonzero(shares > min((1.0 - top_p) / (2 * len(shares)), shares.max() / 2))
    order = likely[np.argsort(-shares[likely], kind="stable")]
    sums = np.cumsum(shares[order]) - shares[order]
    kept = order[: max(1, int(np.searchsorted(sums, top_p)))]
    nucleus = np.full_like(scores, -np.inf)
    nucleus[kept] = scores[kept]
    return nucleus


def _typical(scores: Scores, mass: float) -> Scores:
    """Keep the tokens whose surprise is nearest the mean one, as many as reach `mass`."""
    shares = _shares(scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(shares)
        distance = np.abs(surprise - np.nansum(surprise * shares))
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(shares[order]) < mass).sum()), len(order) - 1)
    drop = distance[order] > distance[order[last]]
    drop[0] = False
    return _without(scores, order[drop])


def _without(scores: Scores, tokens: NDArray[np.intp]) -> Scores:
    kept = scores.copy()
    kept[tokens] = -np.inf
    return kept
