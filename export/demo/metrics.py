"""Metrics of a phone agent's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from statistics import median

from edgeglm.actions import Action, parse_action

Units = tuple[float, float, float, float]  # x0, y0, x1, y1 in thousandths of the screen


@dataclass(frozen=True)
class Expected:
    """The right answer: the whole response, and for a tap the target's box in thousandths of the screen."""

    response: str
    box: Units | None = None


@dataclass(frozen=True)
class Score:
    """Shares are in 0..1; tap metrics are over the samples whose target is a tap."""

    samples: int
    taps: int
    action_type: float
    tap_hit: float
    step_success: float
    median_tap_error: float


def succeeds(expected: Expected, answer: str) -> bool:
    """Return whether type and content are right: a tap in its box, a swipe's direction, the exact text or app."""
    want, got = parse_action(expected.response), parse_action(answer)
    if want is None or got is None or want.type != got.type:
        return False
    if expected.box:
        return _hits(expected.box, got)
    if want.type == "Swipe":
        return _direction(want) == _direction(got)
    return want.arguments == got.arguments


def score(expected: Sequence[Expected], answers: Sequence[str]) -> Score:
    """Return all metrics over pairs of `expected` and `answers`; an answer without a point errs by 1000."""
    pairs = list(zip(expected, answers, strict=True))
    types = [_type(want.response) == _type(answer) for want, answer in pairs]
    taps = [(want, parse_action(answer)) for want, answer in pairs if want.box]
    hits = [want.box is not None and got is not None and _hits(want.box, got) for want, got in taps]
    return Score(
        samples=len(pairs),
        taps=len(taps),
        action_type=_share(types),
        tap_hit=_share(hits),
        step_success=_share([succeeds(want, answer) for want, answer in pairs]),
        median_tap_error=median([_distance(want, got) for want, got in taps] or [0.0]),
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / max(len(flags), 1)


def _type(response: str) -> str | None:
    action = parse_action(response)
    return action.type if action else None


def _hits(box: Units, action: Action) -> bool:
    if action.point is None:
        return False
    (x, y), (x0, y0, x1, y1) = action.point, box
    return x0 <= x <= x1 and y0 <= y <= y1


def _distance(want: Expected, got: Action | None) -> float:
    target = parse_action(want.response)
    if got is None or got.point is None or target is None or target.point is None:
        return 1000.0
    return hypot(got.point[0] - target.point[0], got.point[1] - target.point[1])


def _direction(swipe: Action) -> tuple[bool, bool] | None:
    """Return (is it horizontal, does it grow) of the larger component."""
    start, end = swipe.arguments.get("start"), swipe.arguments.get("end")
    if not isinstance(start, tuple) or not isinstance(end, tuple):
        return None
    dx, dy = end[0] - start[0], end[1] - start[1]
    return abs(dx) > abs(dy), (dx if abs(dx) > abs(dy) else dy) > 0
