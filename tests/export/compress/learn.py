"""Ten steps of a recovery of a small text model, in this process or in those of torchrun; the weights go to a file.

``python -m tests.export.compress.learn FOLDER [together] [keep]``
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from edgeglm.export.compress.lessons import Lesson, Lessons
from edgeglm.export.compress.student import Settings, Student
from edgeglm.export.compress.teacher import Teacher
from edgeglm.export.compress.team import ALONE, joined

STEPS, RATE = 10, 1e-3
VOCABULARY, WINDOW, COUNT = 256, 12, 41


def prepare() -> tuple[Lessons, list[Lesson]]:
    """Lessons of random tokens, one more than two batches and a half have."""
    random = np.random.default_rng(0)
    made = [Lesson(None, tuple(random.integers(2, VOCABULARY, WINDOW).tolist())) for _ in range(COUNT)]
    return Lessons(made[2:], made[:2]), made


def store(teacher: Teacher) -> None:
    """Write a teacher's logits, which are random."""
    random, records = np.random.default_rng(1), np.zeros(teacher.starts[-1], teacher.type)
    records["ids"] = np.argsort(random.random((len(records), VOCABULARY)), 1)[:, : records["ids"].shape[1]]
    records["logits"] = -np.sort(-random.standard_normal(records["logits"].shape) * 3, 1)
    records.tofile(teacher.file)


def main() -> None:
    """Learn, and write losses and weights."""
    folder, together, keep = Path(sys.argv[1]), "together" in sys.argv, "keep" in sys.argv
    with joined() if together else nullcontext(ALONE) as team:
        lessons, made = prepare()
        teacher = Teacher(folder / "teacher.bin", VOCABULARY, made)
        work = folder / ("together" if together else "alone")
        work.mkdir(exist_ok=True)
        settings = Settings(4, RATE, sparse=True)
        student = Student(folder / "model", work, lessons, teacher, settings, lambda stage, done: None, team)
        student._load()
        losses = [student.step() for _ in range(student.history.step, STEPS // 2 if keep else STEPS)]
        if keep:
            student._save()
        weights = team.weights(student.model)
        if team.leads:
            torch.save({"losses": losses, "weights": weights, "size": team.size}, work / "learned.pt")


if __name__ == "__main__":
    main()
