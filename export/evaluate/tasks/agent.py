"""The phone agent's metrics of two models over the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeglm.export.evaluate.statistics import RULE_OF_THREE, Values, compare, mean, median
from edgeglm.export.evaluate.tasks.success import has_type, succeeds, tap_error
from edgeglm.export.metric import SHARE, THOUSANDTHS, Metric
from edgeglm.export.samples.screenshots import Expected


def compare_agents(
    expected: Sequence[Expected], reference: Sequence[str], artifact: Sequence[str], limit: float
) -> list[Metric]:
    """Return the action type, step success and tap hit as shares, the median tap error in thousandths of the screen.

    Args:
        expected: What is right, by sample.
        reference: The original's answers.
        artifact: The bundle's answers.
        limit: The largest drop that passes: a share, and a share of the screen for the tap error.
    """
    taps = np.array([want.box is not None for want in expected])

    def both(measure: Callable[[Expected, str], float]) -> tuple[Values, Values]:
        pairs = [zip(expected, answers, strict=True) for answers in (reference, artifact)]
        ours, theirs = (np.array([measure(want, got) for want, got in pair], np.float64) for pair in pairs)
        return ours, theirs

    shares = {"action_type": both(has_type), "step_success": both(succeeds)}
    shares["tap_hit"] = (shares["step_success"][0][taps], shares["step_success"][1][taps])
    metrics = [
        compare(name, SHARE, *values, limit, mean, unseen=RULE_OF_THREE / max(len(values[0]), 1))
        for name, values in shares.items()
    ]
    errors = both(tap_error)
    missed_by = compare("median_tap_error", THOUSANDTHS, errors[0][taps], errors[1][taps], 1000 * limit, median)
    return [*metrics, missed_by]


def worst_answers(
    expected: Sequence[Expected], reference: Sequence[str], artifact: Sequence[str], count: int
) -> list[int]:
    """Return wrong answers of the artifact: those that the reference gets right first, then the farthest taps."""
    wrong = [index for index, want in enumerate(expected) if not succeeds(want, artifact[index])]

    def order(index: int) -> tuple[bool, float, int]:
        want = expected[index]
        missed_by = tap_error(want, artifact[index]) if want.box else 0.0
        return not succeeds(want, reference[index]), -missed_by, index

    return sorted(wrong, key=order)[:count]
