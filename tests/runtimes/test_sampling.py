"""OpenAI's penalties, which checkpoints have no word for; all other settings are compared with transformers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeglm.runtimes.core.sampling import Sampler, Sampling

LOGITS = np.array([1.0, 0.9, 0.5, 0.0], np.float32)


@pytest.mark.parametrize(
    ("penalties", "expected"),
    [
        ({}, [0, 0, 0, 0]),
        ({"presence_penalty": 0.3}, [0, 1, 0, 0]),
        ({"frequency_penalty": 0.3}, [0, 1, 0, 1]),
        ({"frequency_penalty": -2.0, "presence_penalty": 0.3}, [0, 0, 0, 0]),
    ],
)
def test_penalties_count_the_answer_alone(penalties: dict[str, Any], expected: list[int]) -> None:
    sampler = Sampler(Sampling(**penalties))
    prompt = [0, 0, 0, 0]  # its tokens are not held against the answer
    seen = list(prompt)
    for _ in expected:
        seen.append(sampler.choose(LOGITS, seen))
    assert seen[len(prompt) :] == expected


@pytest.mark.parametrize("vocabulary", [5, 3000])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.95, 0.9999])
@pytest.mark.parametrize("spread", [0.0, 0.01, 3.0])
def test_a_nucleus_is_the_shortest_beginning_that_reaches_top_p(vocabulary: int, top_p: float, spread: float) -> None:
    logits = np.random.default_rng(0).standard_normal(vocabulary) * spread
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-logits, kind="stable")
    count = max(1, int((np.cumsum(shares[order]) - shares[order] < top_p).sum()))
    kept = Sampler(Sampling(temperature=1.0, top_p=top_p)).warp(logits)
    assert set(np.flatnonzero(kept > -np.inf)) == set(order[:count])
    assert (kept[order[:count]] == logits[order[:count]]).all()


class Guide:
    """Allows some tokens; asked for one, it knows of those in `told` alone."""

    def __init__(self, allowed: NDArray[np.bool_], told: NDArray[np.bool_]) -> None:
        self.mask, self.told, self.asked = allowed, told, 0

    def takes(self, token: int) -> bool:
        return bool(self.mask[token] and self.told[token])

    def allowed(self) -> NDArray[np.bool_]:
        self.asked += 1
        return self.mask


def test_the_likeliest_of_what_a_guide_allows_is_chosen_with_and_without_its_mask() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        logits = random.integers(0, 6, 9).astype(np.float32)  # some of which are alike
        guide = Guide(random.random(9) < 0.5, random.random(9) < 0.5)
        guide.mask[random.integers(9)] = True
        expected = int(np.where(guide.mask, logits, -np.inf).argmax())
        assert Sampler(Sampling()).choose(logits, [], guide) == expected
        assert guide.asked == (not guide.takes(int(logits.argmax())))
        assert Sampler(Sampling()).choose(logits, []) == logits.argmax()


def test_a_setting_that_changes_what_is_likeliest_is_not_passed_over() -> None:
    every = np.ones(4, np.bool_)
    settings: list[dict[str, Any]] = [
        {"repetition_penalty": 2.0}, {"frequency_penalty": 0.3}, {"presence_penalty": 0.3}, {"suppress_tokens": (0,)},
        {"bad_words_ids": ((0,),)}, {"no_repeat_ngram_size": 1},
    ]  # fmt: skip
    for setting in settings:
        sampler = Sampler(Sampling(**setting))
        first = sampler.choose(LOGITS, [], Guide(every, every))
        assert sampler.choose(LOGITS, [0], Guide(every, every)) == 1, (setting, first)
    assert Sampler(Sampling(begin_suppress_tokens=(0,))).choose(LOGITS, [], Guide(every, every)) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9])
def test_a_temperature_whose_scores_are_not_finite_is_greedy(temperature: float) -> None:
    for settings in (Sampling(temperature=temperature), Sampling(temperature=temperature, top_p=0.9, min_p=0.1)):
        assert {Sampler(settings, seed).choose(LOGITS * 50, [1]) for seed in range(5)} == {0}
