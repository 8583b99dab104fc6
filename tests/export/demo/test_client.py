"""The client's form of a conversation, and its rules for answers, by cases that were seen."""

from __future__ import annotations

import pytest

from edgeglm.actions import Action
from edgeglm.export.demo.client import first_text, later_text, read_action, split_answer, wrap_answer

TAP = 'do(action="Tap", element=[269,512])'


def test_texts_are_the_clients() -> None:
    assert first_text("Open Maps", "") == 'Open Maps\n\n{"current_app": "System Home"}'
    assert later_text("地图") == '** Screen Info **\n\n{"current_app": "地图"}'


@pytest.mark.parametrize(
    ("content", "thought", "action"),
    [
        (f"<think>Tap OK.</think><answer>{TAP}", "<think>Tap OK.</think><answer>", TAP),
        (f"Tap OK. {TAP}", "Tap OK.", TAP),
        ('<think>a</think><answer>finish(message="Done")', "<think>a</think><answer>", 'finish(message="Done")'),
        (f'finish(message="x") {TAP}', "", f'finish(message="x") {TAP}'),
        ("<think>a</think><answer>Back</answer>", "a", "Back"),
        ("nonsense", "", "nonsense"),
    ],
)
def test_an_answer_is_cut_before_its_action(content: str, thought: str, action: str) -> None:
    assert split_answer(content) == (thought, action)


def test_the_history_wraps_the_tags_again() -> None:
    wrapped = wrap_answer(f"<think>Tap OK.</think><answer>{TAP}")
    assert wrapped == f"<think><think>Tap OK.</think><answer></think><answer>{TAP}</answer>"


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (TAP, Action("Tap", {"element": (269, 512)})),
        (
            'do(action="Swipe", start=[500,800], end=[500,200])',
            Action("Swipe", {"start": (500, 800), "end": (500, 200)}),
        ),
        ('do(action="Launch", app="地图")', Action("Launch", {"app": "地图"})),
        ('do(action="Back")', Action("Back", {})),
        ('do(action="Take_over", message="log\nin")', Action("Take_over", {"message": "log\nin"})),
        ('do(action="Type", text="a "b" c")', Action("Type", {"text": 'a "b" c'})),
        ('do(action="Type_Name", text="Li")', Action("Type", {"text": "Li"})),
        ('finish(message="Done")', Action("finish", {"message": "Done"})),
        # What stands behind the bracket is typed, and that is why no </answer> may reach the client.
        ('do(action="Type", text="milk")</answer>', Action("Type", {"text": 'milk")</answe'})),
    ],
)
def test_actions_are_read_as_the_client_reads_them(code: str, action: Action) -> None:
    assert read_action(code) == action


@pytest.mark.parametrize(
    "code", [f"{TAP}</answer>", "nonsense", "do(", "do", "do()", 'do(action="Tap", element=[x,y])', ""]
)
def test_what_the_client_cannot_read_is_an_error(code: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_action(code)
