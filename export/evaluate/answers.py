"""Answers of both models to the same samples: same prompts and pictures, greedy, same end tokens, same length limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from edgeglm.bundle import Bundle
from edgeglm.errors import BudgetError
from edgeglm.export.evaluate.fp16_sessions import MeasuringSessions, is_emulated
from edgeglm.export.evaluate.original.cache import cached, checkpoint_key
from edgeglm.export.evaluate.original.drafter import MAX_NEW_TOKENS, Drafter
from edgeglm.export.evaluate.original.memory import is_streamed
from edgeglm.export.model import Original
from edgeglm.export.samples.screenshots import Sample
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.prompt import Prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.core.sessions import place_of
from edgeglm.runtimes.inputs.image import merged_grid, picture_bytes
from edgeglm.runtimes.inputs.masks import Mask

if TYPE_CHECKING:
    from edgeglm.export.evaluate.original.whole import WholeOriginal

T = TypeVar("T")
# Of pictures that wait for the decoder, patches and features; then the vision module is loaded again.
WAITING_BYTES = 256 << 20
Show = Callable[[float], object]  # told which share is done
# Screens that the original answers together, and the parameters beyond which they are fewer: with a large model their
# activations count, and together they are hardly faster.
BATCH, PARAMETERS = 32, 8_000_000


def artifact_answers(
    bundle: Bundle,
    samples: Sequence[Sample],
    begun: Sequence[Sequence[int]] | None = None,
    show: Show = lambda _: None,
    masks: Sequence[Mask] = (),
) -> list[Answer]:
    """Return what the runner answers, each sample as if it were the first that it is asked.

    Pictures are encoded in groups, so that the vision module is loaded once for many.

    Args:
        bundle: Its hashes were checked.
        samples: The questions.
        begun: Tokens that each answer begins with, which are not repeated in it; none if None.
        show: Told which share is done.
        masks: Regions that the runner blanks.

    Raises:
        UsageError: A mask is not within a screen.
        BudgetError: A prompt with its answer is longer than the bundle's context.
    """
    answers: list[Answer] = []
    pairs = list(zip(samples, begun or [()] * len(samples), strict=True))
    with open_runner(bundle, len(samples), masks) as runner:
        for group in _batches(pairs, _group_size(bundle)):
            prompts = [runner.prompt(sample.asked) for sample, _ in group]
            check_room(bundle, prompts)
            runner.encode(prompts)
            for prompt, (_, first) in zip(prompts, group, strict=True):
                runner.forget()
                asked, left = prompt.followed_by(first), MAX_NEW_TOKENS - len(first)
                answers.append(runner.answer(asked, max_new_tokens=left, sampling=Sampling()))
                show(len(answers) / len(samples))
    return answers


def open_runner(bundle: Bundle, samples: int, masks: Sequence[Mask] = ()) -> Runner:
    """Open the runner that ships, with what stands in for an accelerator that is not here."""
    return Runner(bundle.folder, masks=masks, sessions=MeasuringSessions(samples))


def check_room(bundle: Bundle, prompts: Sequence[Prompt]) -> None:
    """Raise BudgetError if a prompt with its answer is longer than the bundle's context."""
    longest = max(len(prompt.tokens) for prompt in prompts) + MAX_NEW_TOKENS
    room = bundle.manifest.model.max_positions
    if longest > room:
        why = f"a prompt and its answer take {longest} tokens, and it has room for {room}"
        raise BudgetError(bundle.folder, why, f"export it with --context {longest}")


def _group_size(bundle: Bundle) -> int:
    """Return how many screens' patches and features wait in memory together."""
    width = 4 * bundle.manifest.model.hidden_size
    each = [width * math.prod(merged_grid(vision)) + picture_bytes(vision) for vision in bundle.shapes]
    return max(1, WAITING_BYTES // max(each))


def where_run(bundle: Bundle, samples: int) -> dict[str, str]:
    """Return what runs each module in `artifact_answers` to so many samples, in words."""
    return {
        module.name: place_of(module, samples) + (", in fp16" if is_emulated(module) else "")
        for module in bundle.manifest.modules
        if module.engine
    }


def drafter(bundle: Bundle, answers: Sequence[Sequence[int]]) -> Drafter:
    """Return the bundle, whose `answers` to all samples are known."""

    def draft(samples: Sequence[Sample], begun: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        if not any(begun):
            return answers
        more = artifact_answers(bundle, samples, begun)
        return [[*first, *answer.tokens] for first, answer in zip(begun, more, strict=True)]

    return Drafter(bundle.manifest.generation.eos_token_ids, draft)


def reference_answers(
    original: Original, samples: Sequence[Sample], budget: int, drafter: Drafter, show: Show = lambda _: None
) -> list[str]:
    """Return what the original answers in fp32; kept in the cache by checkpoint and samples.

    Args:
        original: transformers generates its answers. Where that takes more than the budget, or other weights than those
            that transformers finds in the folder (quantized ones are read by edgeglm), it is streamed.
        samples: What it is asked.
        budget: Bytes of memory.
        drafter: Drafts the answers of a streamed original: see `edgeglm.export.evaluate.original.streamed`.
        show: Is told which share is done.
    """

    def compute() -> list[str]:
        if is_streamed(original, budget):
            from edgeglm.export.evaluate.original.streamed import streamed_answers

            return streamed_answers(original, samples, drafter, show)
        from edgeglm.export.evaluate.original.whole import WholeOriginal

        agent, answers = WholeOriginal.load(original.folder), list[str]()
        size = max(1, BATCH * PARAMETERS // max(original.parameters, PARAMETERS))
        for batch in _batches(samples, size):
            answers += _answer(agent, batch)
            show(len(answers) / len(samples))
        return answers

    return cached(_key(original, samples), list[str], compute)


def _answer(agent: WholeOriginal, samples: Sequence[Sample]) -> Iterator[str]:
    return agent.answer([sample.image for sample in samples], [sample.messages for sample in samples], BATCH)


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _key(original: Original, samples: Sequence[Sample]) -> Iterator[bytes]:
    yield f"screens {MAX_NEW_TOKENS}".encode()
    yield checkpoint_key(original.folder, original.adapter_sha256)
    for sample in samples:
        yield repr(sample.messages).encode()
        yield sample.image.tobytes()
