"""Whether a phone agent's answer does what was expected, and how far a tap is from its target."""

from __future__ import annotations

from math import hypot

from edgeglm.actions import Action, parse_action
from edgeglm.export.samples.screenshots import Expected, Units

# What an answer without a point errs by: the whole screen.
NO_POINT = 1000.0


def has_type(expected: Expected, answer: str) -> bool:
    """Return whether the answer is an action of the expected type."""
    want, got = parse_action(expected.response), parse_action(answer)
    return want is not None and got is not None and want.type == got.type


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


def hits(expected: Expected, answer: str) -> bool:
    """Return whether the answer has a point in the expected box, of whatever type its action is."""
    got = parse_action(answer)
    return expected.box is not None and got is not None and _hits(expected.box, got)


def tap_error(expected: Expected, answer: str) -> float:
    """Return the distance from the target's point in thousandths of the screen; `NO_POINT` without one of both."""
    want, got = parse_action(expected.response), parse_action(answer)
    if want is None or want.point is None or got is None or got.point is None:
        return NO_POINT
    return hypot(got.point[0] - want.point[0], got.point[1] - want.point[1])


def _hits(box: Units, action: Action) -> bool:
    if action.point is None:
        return False
    (x, y), (x0, y0, x1, y1) = action.point, box
    return x0 <= x <= x1 and y0 <= y <= y1


def _direction(swipe: Action) -> tuple[bool, bool] | None:
    """Return (is it horizontal, does it grow) of the larger component."""
    start, end = swipe.arguments.get("start"), swipe.arguments.get("end")
    if not isinstance(start, tuple) or not isinstance(end, tuple):
        return None
    dx, dy = end[0] - start[0], end[1] - start[1]
    return abs(dx) > abs(dy), (dx if abs(dx) > abs(dy) else dy) > 0
