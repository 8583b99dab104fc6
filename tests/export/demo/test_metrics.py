from __future__ import annotations

import pytest

from edgeglm.export.demo.metrics import score
from edgeglm.export.samples.screenshots import Expected

TAP = Expected('do(action="Tap", element=[500,500])', (450.0, 480.0, 550.0, 520.0))
SWIPE = Expected('do(action="Swipe", start=[500,800], end=[500,200])')
TYPE = Expected('do(action="Type", text="milk")')


def test_score_counts_each_metric_over_its_own_samples() -> None:
    answers = ['do(action="Tap", element=[530,540])', SWIPE.response, 'do(action="Back")']
    result = score([TAP, SWIPE, TYPE], answers)
    assert (result.samples, result.taps) == (3, 1)
    assert result.action_type == pytest.approx(2 / 3)
    assert result.step_success == pytest.approx(1 / 3)
    assert result.tap_hit == 0
    assert result.median_tap_error == 50


def test_a_tap_without_a_point_errs_by_the_whole_screen() -> None:
    assert score([TAP], ["finish()"]).median_tap_error == 1000


def test_every_answer_needs_an_expectation() -> None:
    with pytest.raises(ValueError, match="zip"):
        score([TAP], [])
