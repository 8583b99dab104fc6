"""A small text model learns: what its held-out windows are judged by, and an interrupt while they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.export.compress import student
from edgeglm.export.compress.lessons import Lessons
from edgeglm.export.compress.state import write_state
from edgeglm.export.compress.student import Settings, Student
from edgeglm.export.compress.teacher import Teacher
from tests.export.compress.learn import VOCABULARY, WINDOW, prepare
from tests.export.compress.test_team import folder

__all__ = ["folder"]


def made(folder: Path) -> Student:
    _, lessons = prepare()
    teacher = Teacher(folder / "teacher.bin", VOCABULARY, lessons)
    settings = Settings(epochs=1, rate=1e-3)
    lessons_of = Lessons(lessons[3:], lessons[:3])
    return Student(folder / "model", folder / "alone", lessons_of, teacher, settings, lambda stage, done: None)


def test_every_token_of_a_held_out_text_counts_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many windows are in memory together: here two and one."""
    together = made(folder).score()
    monkeypatch.setattr(student, "TOKENS", 2 * WINDOW)
    assert made(folder).score() == pytest.approx(together, rel=1e-6)


@pytest.mark.parametrize("moment", ["judging", "writing"])
def test_an_epoch_that_was_interrupted_while_it_was_judged_is_judged_later(
    moment: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last epoch has learned is written, not what there was before it."""
    calls = {"judging": 0, "writing": 0}

    def come(now: str) -> None:
        calls[now] += 1
        if now == moment and calls[now] == 2:
            raise KeyboardInterrupt

    def score(_: Student) -> float:
        come("judging")
        return calls["judging"] / 10

    def write(file: Path, state: Mapping[str, Any]) -> None:
        if file.name == student.BEST:
            come("writing")
        write_state(file, state)

    monkeypatch.setattr(Student, "score", score)
    monkeypatch.setattr(student, "write_state", write)
    first = made(folder)
    with pytest.raises(KeyboardInterrupt):
        first.learn()
    assert first.history.step == first.steps
    again = made(folder)
    history = again.learn()
    assert (history.scores, history.best) == ([0.1, 0.3], 1)
    learned = first.model.state_dict()
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, learned[name]), name
