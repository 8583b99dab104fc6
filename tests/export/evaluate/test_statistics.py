"""The paired bootstrap: right drops, intervals that hold what they promise, and an honest no when samples are few."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np

from edgeglm.export.demo.metrics import score
from edgeglm.export.evaluate.statistics import RULE_OF_THREE, Values, compare, mean
from edgeglm.export.evaluate.tasks.agent import compare_agents, worst_answers
from edgeglm.export.metric import PERPLEXITY, SHARE, THOUSANDTHS, Metric
from edgeglm.export.samples.screenshots import Expected


def shares(reference: Values, artifact: Values, limit: float = 0.02) -> Metric:
    return compare("share", SHARE, reference, artifact, limit, mean, unseen=RULE_OF_THREE / len(reference))


def test_a_drop_beyond_the_limit_fails() -> None:
    reference, artifact = np.ones(1000), np.ones(1000)
    artifact[:100] = 0
    metric = shares(reference, artifact)
    assert metric.drop == pytest.approx(0.1)
    assert metric.low < 0.1 < metric.high
    assert (metric.verdict, metric.passed) == ("fail", False)


def test_two_equal_models_pass_only_with_enough_samples() -> None:
    few, many = shares(np.ones(64), np.ones(64)), shares(np.ones(200), np.ones(200))
    assert (few.verdict, few.passed, few.needed) == ("unclear", False, 150)
    assert many.passed
    assert many.high == pytest.approx(0.015)


def test_a_share_drops_by_all_of_it_at_most() -> None:
    one, failed = shares(np.ones(1), np.ones(1)), shares(np.ones(2), np.zeros(2))
    assert (one.high, one.verdict, one.needed) == (1.0, "unclear", 150)
    assert (failed.drop, failed.high) == (1.0, 1.0)


def test_a_drop_that_may_be_beyond_the_limit_is_unclear_and_says_what_would_do() -> None:
    reference, artifact = np.ones(200), np.ones(200)
    artifact[:3] = 0
    metric = shares(reference, artifact)
    assert metric.verdict == "unclear"
    assert metric.needed is not None
    assert metric.needed > 1000
    longer = shares(np.tile(reference, metric.needed // 200 + 1), np.tile(artifact, metric.needed // 200 + 1))
    assert longer.verdict == "pass"


def test_an_interval_holds_the_true_drop_in_about_95_of_100_draws() -> None:
    random, held = np.random.default_rng(1), 0
    for _ in range(100):
        reference = (random.random(400) < 0.9).astype(float)
        artifact = np.where(random.random(400) < 0.05, 0.0, reference)  # the true drop is 4.5%
        metric = shares(reference, artifact)
        held += metric.low <= 0.045 <= metric.high
    assert 88 <= held <= 100


def test_less_is_better_where_it_says_so() -> None:
    metric = compare("error", THOUSANDTHS, np.full(50, 10.0), np.full(50, 14.0), 3.0, mean)
    assert (metric.drop, metric.verdict) == (4.0, "fail")
    assert compare("error", THOUSANDTHS, np.full(50, 14.0), np.full(50, 10.0), 3.0, mean).verdict == "pass"


def test_a_perplexity_drops_in_shares_of_the_reference() -> None:
    reference = np.linspace(1, 2, 50)

    def perplexity(values: Values) -> Values:
        return np.asarray(np.exp(values.mean(-1)))

    metric = compare("perplexity", PERPLEXITY, reference, reference + np.log(1.1), 0.2, perplexity)
    assert [metric.reference, metric.artifact] == pytest.approx([np.exp(1.5), 1.1 * np.exp(1.5)])
    # Every draw has the same ratio, so there is no doubt about it.
    assert [metric.drop, metric.low, metric.high] == pytest.approx([0.1] * 3)
    assert (metric.change(metric.drop), metric.verdict) == ("10.00%", "pass")


def test_the_metrics_are_those_of_the_demo() -> None:
    tap = '<think>…</think><answer>do(action="Tap", element=[{},{}])</answer>'
    expected = [
        Expected(tap.format(100, 200), (90.0, 190.0, 110.0, 210.0)),
        Expected(tap.format(500, 500), (490.0, 490.0, 510.0, 510.0)),
        Expected('finish(message="Done")'),
    ]
    right = [each.response for each in expected]
    wrong = [tap.format(105, 200), "I do not know", 'finish(message="done")']
    metrics = {metric.name: metric for metric in compare_agents(expected, right, wrong, 0.02)}
    for side, answers in (("reference", right), ("artifact", wrong)):
        whole = score(expected, answers)
        values = {name: getattr(metric, side) for name, metric in metrics.items()}
        assert values == pytest.approx(
            {
                "action_type": whole.action_type,
                "step_success": whole.step_success,
                "tap_hit": whole.tap_hit,
                "median_tap_error": whole.median_tap_error,
            }
        )
    assert not any(metric.passed for metric in metrics.values())


def test_the_worst_are_what_the_original_could_then_the_farthest_taps() -> None:
    tap, box = 'do(action="Tap", element=[{},{}])', (490.0, 490.0, 510.0, 510.0)
    right = tap.format(500, 500)
    expected = [Expected(right, box)] * 4 + [Expected('do(action="Back")')] * 2
    reference = [right, right, tap.format(0, 0), right, 'do(action="Back")', "no"]
    artifact = [tap.format(520, 500), tap.format(900, 500), "no", right, "no", "no"]
    assert worst_answers(expected, reference, artifact, 9) == [1, 0, 4, 2, 5]
    assert worst_answers(expected, reference, artifact, 2) == [1, 0]
    assert worst_answers(expected, reference, [each.response for each in expected], 9) == []
