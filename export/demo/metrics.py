"""Scores of a phone agent's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edgeglm.export.evaluate.tasks.success import has_type, hits, succeeds, tap_error
from edgeglm.export.samples.screenshots import Expected


@dataclass(frozen=True)
class Score:
    """Shares are in 0..1; tap metrics are over the samples whose target is a tap."""

    samples: int
    taps: int
    action_type: float
    tap_hit: float
    step_success: float
    median_tap_error: float


def score(expected: Sequence[Expected], answers: Sequence[str]) -> Score:
    """Return all metrics over pairs of `expected` and `answers`; an answer without a point errs by 1000."""
    pairs = list(zip(expected, answers, strict=True))
    taps = [(want, answer) for want, answer in pairs if want.box]
    return Score(
        samples=len(pairs),
        taps=len(taps),
        action_type=_share([has_type(*pair) for pair in pairs]),
        tap_hit=_share([hits(*pair) for pair in taps]),
        step_success=_share([succeeds(*pair) for pair in pairs]),
        median_tap_error=median([tap_error(*pair) for pair in taps] or [0.0]),
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / max(len(flags), 1)
