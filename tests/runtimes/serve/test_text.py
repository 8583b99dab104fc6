"""Texts on their way to a client, cut into pieces at any place."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeglm.runtimes.serve.text import ReasoningSplitter, StopFilter

LETTERS = st.text("ab", max_size=8)


def stopped(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """Return what a filter lets through."""
    stream = StopFilter(stops)
    text = "".join(map(stream.add, pieces))
    return text + stream.finish(), stream.stopped


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # of a machine that does other things
@given(st.lists(LETTERS, max_size=6), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_is_cut_at_its_first_stop_however_it_comes(pieces: list[str], stops: list[str]) -> None:
    """Where several stop texts overlap, the one that is whole first ends it."""
    whole, expected = "".join(pieces), None
    for end in range(len(whole) + 1):
        places = [whole[:end].find(stop) for stop in stops if stop in whole[:end]]
        if places:
            expected = whole[: min(places)]
            break
    text, is_stopped = stopped([*whole], stops)
    assert (text, is_stopped) == ((whole, False) if expected is None else (expected, True))
    assert stopped(pieces, stops)[1] == is_stopped


def test_what_may_begin_a_stop_is_held_back() -> None:
    stream = StopFilter(["</answer>"])
    assert (stream.add("do()</ans"), stream.add("er"), stream.add("</answer>x")) == ("do()", "</anser", "")
    assert stream.stopped


@pytest.mark.parametrize(
    ("text", "thinks", "expected"),
    [
        ("<think>a</think>b", False, ("a", "b")),
        ("a</think>\nb", True, ("a", "b")),
        ("no reasoning <think>", False, ("", "no reasoning <think>")),
        ("<think>cut off", False, ("cut off", "")),
        ("<thi", False, ("", "<thi")),
        ("", False, ("", "")),
    ],
)
def test_reasoning_is_told_from_the_answer_in_pieces_of_any_size(
    text: str, thinks: bool, expected: tuple[str, str]
) -> None:
    for size in (1, 2, 3, 5, 99):
        splitter = ReasoningSplitter(thinks=thinks)
        pieces = [splitter.add(text[start : start + size]) for start in range(0, len(text), size)]
        pieces.append(splitter.finish())
        reasoning, answer = ("".join(side) for side in zip(*pieces, strict=True))
        assert (reasoning, answer.strip()) == expected, size
