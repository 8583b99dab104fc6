"""The phone agent's metrics of two models over the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot

import numpy as np

from edgeglm.actions import parse_action
from edgeglm.export.demo.metrics import Expected, succeeds
from edgeglm.export.evaluate.statistics import RULE_OF_THREE, Values, compare, mean, median
from edgeglm.export.metric import SHARE, THOUSANDTHS, Metric

# What an answer without a point errs by: the whole screen.
NO_POINT = 1000.0


def compare_agents(
    expected: Sequence[Expected], reference: Sequence[str], artifact: Sequence[str], limit: float
) -> list[Metric]:
    """Return the action type, step success and tap hit as shares, the median tap error in thousandths of the screen.

    `limit` is a share; of the screen too, where the unit is a thousandth of it.
    """
    taps = np.array([want.box is not None for want in expected])

    def both(measure: Callable[[Expected, str], float]) -> tuple[Values, Values]:
        pairs = [zip(expected, answers, strict=True) for answers in (reference, artifact)]
        ours, theirs = (np.array([measure(want, got) for want, got in pair], np.float64) for pair in pairs)
        return ours, theirs

    shares = {"action_type": both(_same_type), "step_success": both(_success)}
    shares["tap_hit"] = (shares["step_success"][0][taps], shares["step_success"][1][taps])
    metrics = [
        compare(name, SHARE, *values, limit, mean, unseen=RULE_OF_THREE / max(len(values[0]), 1))
        for name, values in shares.items()
    ]
    errors = both(_tap_error)
    tap_error = compare("median_tap_error", THOUSANDTHS, errors[0][taps], errors[1][taps], 1000 * limit, median)
    return [*metrics, tap_error]


def worst_answers(
    expected: Sequence[Expected], reference: Sequence[str], artifact: Sequence[str], count: int
) -> list[int]:
    """Return wrong answers of the artifact: those that the reference gets right first, then the farthest taps."""
    wrong = [index for index, want in enumerate(expected) if not succeeds(want, artifact[index])]

    def order(index: int) -> tuple[bool, float, int]:
        want = expected[index]
        missed_by = _tap_error(want, artifact[index]) if want.box else 0.0
        return not succeeds(want, reference[index]), -missed_by, index

    return sorted(wrong, key=order)[:count]


def _same_type(want: Expected, answer: str) -> float:
    right, got = parse_action(want.response), parse_action(answer)
    return float(right is not None and got is not None and right.type == got.type)


def _success(want: Expected, answer: str) -> float:
    return float(succeeds(want, answer))


def _tap_error(want: Expected, answer: str) -> float:
    right, got = parse_action(want.response), parse_action(answer)
    if right is None or right.point is None or got is None or got.point is None:
        return NO_POINT
    return hypot(got.point[0] - right.point[0], got.point[1] - right.point[1])
