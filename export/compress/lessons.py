"""Lessons of a recovery: samples or windows of a text, each with the tokens that the student is to give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeglm.export.compress.options import WINDOW, find_tokenizer
from edgeglm.export.evaluate.original.whole import Prompts
from edgeglm.export.requests import SAMPLES
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.samples.windows import cut_windows, read_tokenizer

# Every so many-th is held out, and at most so many.
EVERY, MOST_HELD = 10, 128


@dataclass(frozen=True)
class Lesson:
    """A sample, or a window of text.

    Args:
        sample: The sample; None of a window.
        tokens: Those of the right answer, or of the window.
    """

    sample: Sample | None
    tokens: tuple[int, ...]

    @property
    def predicted(self) -> int:
        """The places that are predicted: each token of an answer and its end, each token of a window but the first."""
        return len(self.tokens) + 1 if self.sample else len(self.tokens) - 1


@dataclass(frozen=True)
class Lessons:
    """The lessons to learn from, and those that are held out."""

    taught: Sequence[Lesson]
    held: Sequence[Lesson]


def read_lessons(file: Path, prompts: Prompts, folder: Path) -> Lessons:
    """Return the lessons of a file of samples (.jsonl) or of a text, as `check_recovery` has checked it.

    Args:
        file: It.
        prompts: The original's tokenizer.
        folder: The original.

    Raises:
        UsageError: The file is none.
    """
    lessons = _samples(file, prompts) if file.suffix == SAMPLES else _windows(file, folder)
    held = lessons[::EVERY][:MOST_HELD]
    chosen = {id(lesson) for lesson in held}
    return Lessons([lesson for lesson in lessons if id(lesson) not in chosen], held)


def _samples(file: Path, prompts: Prompts) -> list[Lesson]:
    def tokens(sample: Sample) -> tuple[int, ...]:
        return tuple(prompts.tokenizer(sample.expected.response, add_special_tokens=False)["input_ids"])

    return [Lesson(sample, tokens(sample)) for sample in read_samples(file)]


def _windows(file: Path, folder: Path) -> list[Lesson]:
    windows = cut_windows(read_tokenizer(find_tokenizer(folder)), file, WINDOW, WINDOW, None)
    return [Lesson(None, tuple(sequence)) for sequence in windows.sequences.tolist()]


@dataclass(frozen=True)
class Encoded:
    """A lesson as the model reads it: tokens with the right answer, and what the image processor gives."""

    lesson: Lesson
    tokens: tuple[int, ...]
    pictures: Mapping[str, Any]


def encode(prompts: Prompts, lesson: Lesson) -> Encoded:
    """Return a lesson's tokens, and its picture's patches."""
    if lesson.sample is None:
        return Encoded(lesson, lesson.tokens, {})
    inputs: Any = prompts.encode([lesson.sample.image], [lesson.sample.messages])
    return Encoded(lesson, (*inputs["input_ids"][0].tolist(), *lesson.tokens), inputs)


def pieces(encoded: Sequence[Encoded], tokens: int) -> Iterator[list[Encoded]]:
    """Yield as many lessons together as have so many tokens with their padding, or one."""
    piece: list[Encoded] = []
    for lesson in encoded:
        longest = max(len(other.tokens) for other in (*piece, lesson))
        if piece and longest * (len(piece) + 1) > tokens:
            yield piece
            piece = []
        piece.append(lesson)
    yield piece


@dataclass(frozen=True)
class Taught:
    """Lessons as transformers takes them.

    Args:
        inputs: Of the model, padded behind.
        places: (2, n) sequence and place of every hidden state that predicts a token.
    """

    inputs: dict[str, Tensor]
    places: Tensor


def collate(prompts: Prompts, encoded: Sequence[Encoded]) -> Taught:
    """Return lessons as one batch."""
    lengths = [len(lesson.tokens) for lesson in encoded]
    ids = torch.full((len(encoded), max(lengths)), int(prompts.tokenizer.pad_token_id))
    for row, lesson in zip(ids, encoded, strict=True):
        row[: len(lesson.tokens)] = torch.tensor(lesson.tokens)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if prompts.processor is not None:
        inputs["mm_token_type_ids"] = ((ids == prompts.image) & mask).long()
        for key in ("pixel_values", "image_grid_thw"):
            inputs[key] = torch.cat([lesson.pictures[key] for lesson in encoded])
    places = [(row, place) for row, lesson in enumerate(encoded) for place in _places(lesson)]
    return Taught(inputs, torch.tensor(places).T)


def _places(encoded: Encoded) -> range:
    """Return the places whose hidden states predict a token; nothing follows the last token of a window."""
    end = len(encoded.tokens) - (encoded.lesson.sample is None)
    return range(end - encoded.lesson.predicted, end)


def labels(lessons: Sequence[Lesson], likeliest: NDArray[np.int32]) -> Tensor:
    """Return the right token of every place that is predicted; at an answer's end it is the teacher's likeliest."""
    found, start = np.array(likeliest, np.int64), 0
    for lesson in lessons:
        right = lesson.tokens if lesson.sample else lesson.tokens[1:]
        found[start : start + len(right)] = right
        start += lesson.predicted
    return torch.from_numpy(found)
