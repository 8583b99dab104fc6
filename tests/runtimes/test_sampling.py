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
