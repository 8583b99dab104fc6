"""The teacher's largest logits at every place of the lessons: streamed block by block, and stored once.

So teacher and student are never in memory together. A killed run goes on behind the last whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeglm.export.compress.lessons import Lesson
from edgeglm.export.evaluate.original.decoder import StreamedDecoder, has_mrope
from edgeglm.export.evaluate.original.streamed import as_drafted, judged
from edgeglm.export.evaluate.original.whole import Prompts
from edgeglm.export.model import Original

# Logits that are kept of a place; the others are one sum.
LARGEST = 64
TEMPERATURE = 5.0
# Rows of the head at once.
HEAD_ROWS = 8192
# Windows of text, or screens, that pass through the teacher before what they gave is on the disk.
BATCH = 64
Records = NDArray[Any]


def record_type(vocabulary: int) -> np.dtype[Any]:
    """Return the type of a record: the largest logits, the largest first, and the logarithm of the others' sum at T."""
    count = min(LARGEST, vocabulary - 1)
    return np.dtype([("ids", "<i4", count), ("logits", "<f4", count), ("rest", "<f4")])


class Teacher:
    """The stored logits of lessons.

    Args:
        file: Where they are.
        vocabulary: Of the original.
        lessons: In their order.
    """

    def __init__(self, file: Path, vocabulary: int, lessons: Sequence[Lesson]) -> None:
        self.file, self.lessons, self.type = file, lessons, record_type(vocabulary)
        self.starts = [0, *accumulate(lesson.predicted for lesson in lessons)]
        self.places = {id(lesson): index for index, lesson in enumerate(lessons)}

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self.starts[-1] * self.type.itemsize

    def records(self, lessons: Sequence[Lesson]) -> Records:
        """Return the records of lessons, one after the other."""
        found = []
        for lesson in lessons:
            start = self.starts[self.places[id(lesson)]]
            found.append(np.fromfile(self.file, self.type, lesson.predicted, offset=start * self.type.itemsize))
        return np.concatenate(found)

    def store(self, original: Original, prompts: Prompts, show: Callable[[float], None]) -> None:
        """Compute what is not stored yet. Raises OSError.

        Args:
            original: The teacher.
            prompts: Its own.
            show: Is told which share is done.
        """
        known = self.file.stat().st_size // self.type.itemsize if self.file.exists() else 0
        done = max(index for index, start in enumerate(self.starts) if start <= known)
        with open(self.file, "r+b" if self.file.exists() else "wb") as output:
            output.truncate(self.starts[done] * self.type.itemsize)
            output.seek(0, os.SEEK_END)
            for start in range(done, len(self.lessons), BATCH):
                show(start / len(self.lessons))
                batch = self.lessons[start : start + BATCH]
                for decoder, states in _hidden(original, prompts, batch):
                    output.write(self._largest(decoder, states).tobytes())
                output.flush()
                os.fsync(output.fileno())

    @torch.inference_mode()
    def _largest(self, decoder: StreamedDecoder, states: Tensor) -> Records:
        """Return the records of last hidden states (n, hidden)."""
        count = self.type["ids"].shape[0]
        best, ids = torch.empty(len(states), 0), torch.empty(len(states), 0, dtype=torch.int64)
        total = torch.full((len(states),), -torch.inf)
        for start in range(0, decoder.decoder.vocabulary, HEAD_ROWS):
            stop = min(start + HEAD_ROWS, decoder.decoder.vocabulary)
            logits = states @ torch.from_numpy(decoder.source.rows(decoder.decoder.head, start, stop)).T
            total = torch.logaddexp(total, (logits / TEMPERATURE).logsumexp(-1))
            numbers = torch.arange(start, stop).expand(len(states), -1)
            best, order = torch.cat([best, logits], 1).topk(min(count, best.shape[1] + stop - start), 1)
            ids = torch.cat([ids, numbers], 1).gather(1, order)
        records = np.empty(len(states), self.type)
        records["ids"], records["logits"] = ids.numpy(), best.numpy()
        inside = (best / TEMPERATURE - total[:, None]).exp().sum(1)
        records["rest"] = (total + torch.log1p(-inside.clamp(max=1 - 1e-6))).numpy()
        return records


def _hidden(
    original: Original, prompts: Prompts, lessons: Sequence[Lesson]
) -> Iterator[tuple[StreamedDecoder, Tensor]]:
    """Yield by lesson the last hidden states of the places that predict a token, with the decoder."""
    if lessons[0].sample is None:
        decoder = StreamedDecoder(original)
        states = decoder.hidden(np.array([lesson.tokens[:-1] for lesson in lessons]))
        yield from ((decoder, rows) for rows in states)
        return
    mrope = has_mrope(original)
    drafted = (
        as_drafted(prompts, lesson.sample, [*lesson.tokens, 0], mrope=mrope) for lesson in lessons if lesson.sample
    )
    yield from ((decoder, states) for decoder, states, _ in judged(original, drafted))
