"""Ten steps of a recovery of a small text model, in this process or in those that torchrun starts.

``torchrun … -m tests.export.compress.learn FOLDER`` writes what the leader has learned to ``FOLDER/together``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeglm.export.compress.lessons import Lesson, Lessons
from edgeglm.export.compress.student import Settings, Student
from edgeglm.export.compress.teacher import Teacher
from edgeglm.export.compress.team import Team, joined

STEPS, STORED, RATE = 10, 5, 1e-3
VOCABULARY, WINDOW, COUNT = 256, 12, 41
TOGETHER = "together"


def prepare() -> tuple[Lessons, list[Lesson]]:
    """Lessons of random tokens: two batches and a half."""
    random = np.random.default_rng(0)
    made = [Lesson(None, tuple(random.integers(2, VOCABULARY, WINDOW).tolist())) for _ in range(COUNT)]
    return Lessons(made[2:], made[:2]), made


def store(teacher: Teacher) -> None:
    """Write a teacher's logits, which are random."""
    random, records = np.random.default_rng(1), np.zeros(teacher.starts[-1], teacher.type)
    records["ids"] = np.argsort(random.random((len(records), VOCABULARY)), 1)[:, : records["ids"].shape[1]]
    records["logits"] = -np.sort(-random.standard_normal(records["logits"].shape) * 3, 1)
    records.tofile(teacher.file)


def learn(folder: Path, work: Path, team: Team) -> dict[str, Any]:
    """Go on from the state in `work` to the last step, and store the state at one in between; losses and weights."""
    lessons, made = prepare()
    teacher = Teacher(folder / "teacher.bin", VOCABULARY, made)
    settings = Settings(4, RATE, sparse=True)
    student = Student(folder / "model", work, lessons, teacher, settings, lambda stage, done: None, team)
    student._load()
    losses = []
    while student.history.step < STEPS:
        losses.append(student.step())
        if student.history.step == STORED:
            student._save()
    return {"losses": losses, "weights": team.weights(student.model), "size": team.size}


def main() -> None:
    """Learn in a process of torchrun's."""
    folder = Path(sys.argv[1])
    with joined() as team:
        learned = learn(folder, folder / TOGETHER, team)
        if team.leads:
            torch.save(learned, folder / TOGETHER / "learned.pt")


if __name__ == "__main__":
    main()
