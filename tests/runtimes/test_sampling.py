"""OpenAI's penalties, which checkpoints have no word for; all other settings are compared with transformers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
