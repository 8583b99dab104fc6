from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeglm.actions import Action, parse_action


@pytest.mark.parametrize(
    ("response", "action"),
    [
        ('do(action="Tap", element=[12,999])', Action("Tap", {"element": (12, 999)})),
        ('<think>Tap it.</think><answer>do(action="Back")</answer>', Action("Back", {})),
        (
            'A thought first.\ndo(action="Wait", duration="2 seconds")',
            Action("Wait", {"duration": "2 seconds"}),
        ),
        ('do(action="Swipe", start=[1,2], end=[3,4])', Action("Swipe", {"start": (1, 2), "end": (3, 4)})),
        ('<answer>\nfinish(message="已完成")\n</answer>', Action("finish", {"message": "已完成"})),
        ('do(action="Type", text="say \\"hi\\" (now)")', Action("Type", {"text": 'say "hi" (now)'})),
        ('do(action="Type", text="two\nlines")', Action("Type", {"text": "two\nlines"})),
    ],
)
def test_parses_the_language_of_open_autoglm(response: str, action: Action) -> None:
    assert parse_action(response) == action


@pytest.mark.parametrize(
    "response",
    [
        "",
        "no action",
        'do(action="Tap", element=[1,2]',
        "do(action=__import__('os').system('true'))",
        'do("Tap")',
        'do(action="Tap", element=[1,2,3])',
        'do(action="Tap", element=[1.5,2])',
        'do(action="Tap", element=[True,False])',
        "do(element=[1,2])",
        'do(**{"action": "Tap"})',
        "do(action=[1,2])",
    ],
)
def test_anything_else_is_no_action(response: str) -> None:
    assert parse_action(response) is None


def test_python_says_nothing_of_a_models_garbage() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_action('do(action="Tap", element=[1,2if 3else 4])') is None


@given(st.text())
def test_never_raises(text: str) -> None:
    parse_action(text)
    parse_action(f'do(action="{text}", element=[{text}])')


def test_only_taps_have_a_point() -> None:
    assert Action("Long Press", {"element": (1, 2)}).point == (1, 2)
    assert Action("Swipe", {"start": (1, 2), "end": (3, 4)}).point is None
    assert Action("Tap", {"element": "here"}).point is None
