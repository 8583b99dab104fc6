"""Greedy answers of an original that does not fit into memory: the bundle drafts them, the original corrects them.

Speculative decoding. The bundle, which answers nearly alike, drafts a whole answer. The original, streamed block by
block, says for every place of the draft in one pass which token it would have put there. Up to the first difference
the draft is what the original answers; there the original's token is taken instead, and the bundle drafts on from it.
What comes out are the original's own greedy answers, whatever was drafted, in passes as few as the differences in the
answer that has most of them. (Where two tokens are equally likely to the last digit, a pass over the whole answer and
one token after the other may round apart.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeglm.export.evaluate.original.decoder import StreamedDecoder, has_mrope
from edgeglm.export.evaluate.original.drafter import MAX_NEW_TOKENS, Drafter
from edgeglm.export.evaluate.original.tower import StreamedTower
from edgeglm.export.evaluate.original.whole import Prompts
from edgeglm.export.model import Original
from edgeglm.export.samples.screenshots import Sample
from edgeglm.runtimes.core.assembly import Assembly, assemble

# What passes through the decoder's blocks together, and through the vision tower's: of AutoGLM-Phone-9B, 128 MiB and
# 32 MiB of hidden states.
TOKENS, PATCHES = 8_192, 5_500
T = TypeVar("T")


def streamed_answers(
    original: Original,
    samples: Sequence[Sample],
    drafter: Drafter,
    show: Callable[[float], object] = lambda _: None,
) -> list[str]:
    """Return the answers of the original, in fp32; `show` is told which share is done."""
    prompts, answers = Prompts.load(original.folder), dict[int, list[int]]()
    mrope = has_mrope(original)
    drafts = {index: list(tokens) for index, tokens in enumerate(drafter.draft(samples, [()] * len(samples)))}
    while drafts:
        asked, decided = [samples[index] for index in drafts], dict[int, list[int]]()
        drafted = (as_drafted(prompts, *pair, mrope=mrope) for pair in zip(asked, drafts.values(), strict=True))
        for (index, draft), likeliest in zip(drafts.items(), verdicts(original, drafted), strict=True):
            tokens, whole = corrected(draft, likeliest, drafter.ends)
            (answers if whole else decided)[index] = tokens
            show(len(answers) / len(samples))
        drafts = {}
        if decided:
            more = drafter.draft([samples[index] for index in decided], list(decided.values()))
            drafts = {index: list(tokens) for index, tokens in zip(decided, more, strict=True)}
    return prompts.texts([answers[index] for index in sorted(answers)], drafter.ends)


def corrected(draft: Sequence[int], likeliest: Sequence[int], ends: Collection[int]) -> tuple[list[int], bool]:
    """Return what of a draft the model agrees to, with its own token at the first difference; and whether that is all.

    Args:
        draft: Tokens.
        likeliest: The model's tokens for each place, given the draft before it.
        ends: Tokens that end an answer.
    """
    for index, (drafted, own) in enumerate(zip(draft, likeliest, strict=True)):
        if drafted != own:
            return [*draft[:index], own], own in ends or index + 1 == MAX_NEW_TOKENS
    return list(draft), True


@dataclass(frozen=True)
class Drafted:
    """A prompt with the draft of its answer, n tokens: what the model gets, and what it judges.

    Args:
        prompt: Its tokens, and all of the draft but its last.
        pixels: The picture's patches, as its processor gives them.
        grid: Their number in time, rows and columns: (1, 3).
        draft: (n).
    """

    prompt: Assembly
    pixels: Tensor
    grid: Tensor
    draft: NDArray[np.int64]


def verdicts(original: Original, drafted: Iterable[Drafted]) -> Iterator[list[int]]:
    """Yield for each draft the original's likeliest tokens, in as many passes as memory asks for."""
    for decoder, states, question in judged(original, drafted):
        yield decoder.judge(states, question.draft)[1].tolist()


def judged(original: Original, drafted: Iterable[Drafted]) -> Iterator[tuple[StreamedDecoder, Tensor, Drafted]]:
    """Yield each draft with the last hidden states (n, hidden) that predict its tokens, and the decoder.

    Args:
        original: The checkpoint.
        drafted: As many as memory asks for pass through it together.
    """
    for batch in _batches(drafted, lambda question: len(question.prompt.tokens), TOKENS):
        features = list(_features(original, batch))  # of all, so that the tower is gone when the decoder comes
        decoder = StreamedDecoder(original)
        hidden = [decoder.embed(np.array(question.prompt.tokens))[None] for question in batch]
        for states, question, feature in zip(hidden, batch, features, strict=True):
            question.prompt.place(states[0].numpy(), [feature.numpy()])
        decoder.run(hidden, [question.prompt.positions for question in batch])
        for states, question in zip(hidden, batch, strict=True):
            yield decoder, states[0, -len(question.draft) :], question
        del decoder


def _features(original: Original, drafted: Sequence[Drafted]) -> Iterator[Tensor]:
    tower = StreamedTower(original)
    for batch in _batches(drafted, lambda question: len(question.pixels), PATCHES):
        found = tower.features(
            torch.cat([question.pixels for question in batch]), torch.cat([question.grid for question in batch])
        )
        yield from found.split([stop - start for question in batch for start, stop in question.prompt.spans])


def as_drafted(prompts: Prompts, sample: Sample, draft: Sequence[int], *, mrope: bool) -> Drafted:
    """Return a screen's question with the draft of its answer.

    Args:
        prompts: The original's.
        sample: The screen.
        draft: Tokens.
        mrope: Whether positions count time, row and column.
    """
    inputs: Any = prompts.encode([sample.image], [sample.messages])
    tokens, grid = inputs["input_ids"][0].tolist(), inputs["image_grid_thw"]
    rows, columns = (grid[0, 1:] // prompts.processor.merge_size).tolist()
    prompt = assemble(tokens, [token == prompts.image for token in tokens], [(rows, columns)], mrope=mrope)
    return Drafted(prompt.followed_by(draft[:-1]), inputs["pixel_values"], grid, np.array(draft, np.int64))


def _batches(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield items in order, as many together as their sizes allow, or one."""
    some: list[T] = []
    for item in items:
        if some and sum(map(size, some)) + size(item) > limit:
            yield some
            some = []
        some.append(item)
    if some:
        yield some
