"""Recover a smaller checkpoint: the teacher's logits first, then the student, then a checkpoint of what it learned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeglm.export.checkpoint.lineage import LINEAGE
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.lessons import Lessons, read_lessons
from edgeglm.export.compress.options import check_learning, pace_of
from edgeglm.export.compress.state import as_os_errors
from edgeglm.export.compress.student import Settings, Student
from edgeglm.export.compress.teacher import Teacher
from edgeglm.export.compress.team import ALONE, Team
from edgeglm.export.compress.write import copy_small_files
from edgeglm.export.evaluate.original.decoder import parts_of
from edgeglm.export.evaluate.original.whole import Prompts
from edgeglm.export.requests import CompressRequest
from edgeglm.export.write.disk import explained, sync

# Below this width the conversions of bf16 take longer than its products save: 1.2 times the time of fp32 on the demo.
WIDE = 1024
# The folder of the recovered checkpoint.
SAVED = "saved"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def recover(
    request: CompressRequest,
    original: Checkpoint,
    folder: Path,
    work: Path,
    budget: int,
    show: Callable[[str, float], None],
    team: Team | None = None,
) -> list[float]:
    """Have a smaller checkpoint learn from its original, and write what it learned to ``work/saved``.

    Args:
        request: What is asked for.
        original: The teacher.
        folder: The smaller checkpoint.
        work: Where logits and state are kept.
        budget: Bytes of memory.
        show: Is told the stage and which share is done.
        team: The processes that recover it; None for this one alone.

    Returns:
        The scores of the held-out lessons, before the recovery and after each epoch.

    Raises:
        EdgeglmError: The samples or an option is wrong, or memory or disk is too short.
        OSError: A file cannot be written.
    """
    assert request.distill is not None
    team = team or ALONE
    smaller = Checkpoint.open(folder)
    learning = check_learning(request, original, smaller.parameters, budget, team.size)
    config, family, _ = parts_of(original.config)
    decoder = family.describe(config, None).decoder
    settings = Settings(
        *pace_of(request),
        request.freeze,
        checkpointing=learning > budget / 2,
        bf16=decoder.hidden >= WIDE and torch.cpu._is_avx512_bf16_supported(),
        sparse=request.sparse is not None,
    )
    course = Course(folder, work, original.folder, request.distill, decoder.vocabulary, settings)
    prompts = Prompts.load(original.folder)
    lessons = read_lessons(request.distill, prompts, original.folder)
    teacher = course.teacher(lessons)
    with explained(request.output, work, teacher.nbytes):
        teacher.store(original, prompts, lambda done: show("the original answers", done))
    team.tell(course)
    with explained(request.output, work):
        student = Student(folder, work, lessons, teacher, settings, show, team)
        history = student.learn()
        _write(student, smaller)
    return history.scores


@dataclass(frozen=True)
class Course:
    """The course of a recovery, as its leader tells the others.

    Args:
        folder: The smaller checkpoint.
        work: Where logits and state are kept.
        original: The original's folder.
        data: The samples or text.
        vocabulary: Of the original.
        settings: How the student learns.
    """

    folder: Path
    work: Path
    original: Path
    data: Path
    vocabulary: int
    settings: Settings

    def teacher(self, lessons: Lessons) -> Teacher:
        """Return the stored logits of lessons."""
        return Teacher(self.work / "teacher.bin", self.vocabulary, [*lessons.taught, *lessons.held])


def follow(team: Team) -> None:
    """Learn with the leader of a team, which writes and prints; end with it.

    Raises:
        UsageError: A file that the leader has is not here.
    """
    course: Course | None = team.tell(None)
    if course is None:
        return
    lessons = read_lessons(course.data, Prompts.load(course.original), course.original)
    teacher = course.teacher(lessons)
    Student(course.folder, course.work, lessons, teacher, course.settings, lambda stage, done: None, team).learn()


def _write(student: Student, smaller: Checkpoint) -> None:
    """Write the student as transformers saves it, in the dtype that it had, with the files beside it."""
    saved = student.work / SAVED
    shutil.rmtree(saved, ignore_errors=True)
    names = {tensor.dtype for tensor in smaller.tensors.values()}
    dtype = DTYPES[names.pop()] if len(names) == 1 else torch.float32
    with as_os_errors():
        student.whole.to(dtype).save_pretrained(saved)
    copy_small_files(smaller.folder, saved)
    shutil.copyfile(smaller.folder / LINEAGE, saved / LINEAGE)
    for file in saved.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    sync(saved)
