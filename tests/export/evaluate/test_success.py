"""Success of an answer: the right action at the right place."""

from __future__ import annotations

import pytest

from edgeglm.export.evaluate.tasks.success import NO_POINT, has_type, hits, succeeds, tap_error
from edgeglm.export.samples.screenshots import Expected

TAP = Expected('do(action="Tap", element=[500,500])', (450.0, 480.0, 550.0, 520.0))
SWIPE = Expected('do(action="Swipe", start=[500,800], end=[500,200])')
TYPE = Expected('do(action="Type", text="milk")')


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        (TAP, 'do(action="Tap", element=[451,519])', True),
        (TAP, 'do(action="Tap", element=[449,500])', False),
        (TAP, 'do(action="Long Press", element=[500,500])', False),
        (TAP, "no action at all", False),
        (SWIPE, 'do(action="Swipe", start=[480,700], end=[500,100])', True),
        (SWIPE, 'do(action="Swipe", start=[500,200], end=[500,800])', False),
        (SWIPE, 'do(action="Swipe")', False),
        (TYPE, '<answer>do(action="Type", text="milk")</answer>', True),
        (TYPE, 'do(action="Type", text="silk")', False),
    ],
)
def test_success_is_the_right_action_at_the_right_place(expected: Expected, answer: str, right: bool) -> None:
    assert succeeds(expected, answer) is right


def test_a_point_counts_whatever_its_action() -> None:
    press = 'do(action="Long Press", element=[503,504])'
    assert (hits(TAP, press), has_type(TAP, press), tap_error(TAP, press)) == (True, False, 5.0)
    assert (hits(SWIPE, press), tap_error(TAP, "no action at all")) == (False, NO_POINT)
