"""The figure of an answer's time; tests/cli/test_bench.py measures a bundle."""

from __future__ import annotations

import pytest

from edgeglm.export.evaluate.speed import ANSWER, Speed


def test_an_answer_is_its_first_token_and_the_others() -> None:
    speed = Speed(1, 6, 900.0, 100.0, 1000.0, 50.0, 1 << 20)
    assert speed.answer_ms == pytest.approx(100 + (ANSWER - 1) * 20)
