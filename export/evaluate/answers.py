"""Answers of both models to the same samples: same prompts and pictures, greedy, same end tokens, same length limit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.errors import BudgetError
from edgeglm.export.evaluate.fp16_sessions import is_emulated, open_decoder, open_encoder
from edgeglm.export.evaluate.original.cache import cached, checkpoint_key
from edgeglm.export.evaluate.original.memory import is_streamed
from edgeglm.export.evaluate.original.streamed import Drafter, streamed_answers
from edgeglm.export.evaluate.original.whole import MAX_NEW_TOKENS, WholeOriginal
from edgeglm.export.model import Original
from edgeglm.export.samples.screenshots import Sample
from edgeglm.manifest import Module, Vision
from edgeglm.runtimes.core.embedding import EmbeddingRows
from edgeglm.runtimes.core.generate import generate
from edgeglm.runtimes.core.sampling import Sampler, Sampling
from edgeglm.runtimes.core.session import EncoderSession
from edgeglm.runtimes.core.sessions import place_of
from edgeglm.runtimes.core.window import capacity_for
from edgeglm.runtimes.inputs.image import merged_grid, nearest_shape, to_patches
from edgeglm.runtimes.inputs.positions import prompt_positions
from edgeglm.runtimes.text.chat import Chat

# Features of the pictures that wait for the decoder; then the vision module is loaded again.
FEATURE_BYTES = 256 << 20
Show = Callable[[float], object]  # told which share is done
# Screens that the original answers together, and the parameters beyond which they are fewer: with a large model their
# activations count, and together they are hardly faster.
BATCH, PARAMETERS = 32, 8_000_000


def artifact_answers(
    bundle: Bundle,
    samples: Sequence[Sample],
    begun: Sequence[Sequence[int]] | None = None,
    show: Show = lambda _: None,
) -> list[list[int]]:
    """Return what the bundle answers, as tokens: as on a device, the decoder comes when the vision module is gone.

    `begun` are tokens that the answers begin with, none unless given. The last token of an answer ends it, unless
    it is as long as can be.

    Raises:
        BudgetError: A prompt with its answer is longer than the bundle's context.
    """
    tokens = max(math.prod(merged_grid(vision)) for vision in bundle.shapes)
    group = max(1, FEATURE_BYTES // (4 * bundle.manifest.model.hidden_size * tokens))
    answers: list[list[int]] = []
    for start in range(0, len(samples), group):
        some, first = samples[start : start + group], (begun or [()] * len(samples))[start : start + group]
        visions = [_shape(sample, bundle.shapes) for sample in some]
        for answer in _decode(bundle, visions, some, _features(bundle, visions, some, len(samples)), first):
            answers.append(answer)
            show(len(answers) / len(samples))
    return answers


def as_text(bundle: Bundle, answers: Sequence[Sequence[int]]) -> list[str]:
    """Return the answers as the runner prints them."""
    chat, ends = Chat.of_bundle(bundle), _ends(bundle)
    streams = [chat.stream() for _ in answers]
    for stream, answer in zip(streams, answers, strict=True):
        for token in answer:
            if token not in ends:
                stream.add(token)
    return [stream.text for stream in streams]


def where_run(bundle: Bundle, samples: int) -> dict[str, str]:
    """Return what runs each module in `artifact_answers` to so many samples, in words."""
    return {
        module.name: place_of(module, samples) + (", in fp16" if is_emulated(module) else "")
        for module in bundle.manifest.modules
        if module.engine
    }


def _shape(sample: Sample, shapes: Sequence[Vision]) -> Vision:
    """Return the shape that the runner brings a screen to."""
    return shapes[0] if len(shapes) == 1 else nearest_shape(*sample.image.size, shapes)


def _encoder(bundle: Bundle, vision: Vision, samples: int) -> EncoderSession:
    """Return the vision module's session: the NPU's simulator for few samples, else ONNX Runtime."""
    module = _image_encoder(bundle).for_grid(vision.grid)
    return open_encoder(bundle, module, _threads(), samples)


def _features(bundle: Bundle, visions: Sequence[Vision], samples: Sequence[Sample], total: int) -> list[NDArray[Any]]:
    found = dict[int, NDArray[Any]]()
    for vision in {vision.grid: vision for vision in visions}.values():
        encoder = _encoder(bundle, vision, total)
        for index, sample in enumerate(samples):
            if visions[index].grid == vision.grid:
                found[index] = encoder.run({"pixel_values": to_patches(sample.image, vision)})["features"]
        encoder.close()
    return [found[index] for index in range(len(samples))]


def _decode(
    bundle: Bundle,
    visions: Sequence[Vision],
    samples: Sequence[Sample],
    pictures: Sequence[NDArray[Any]],
    begun: Sequence[Sequence[int]],
) -> Iterator[list[int]]:
    model, rows, chat = bundle.manifest.model, EmbeddingRows(bundle), Chat.of_bundle(bundle)
    asked = zip(samples, visions, strict=True)
    prompts = [chat.encode(sample.messages, grids=[vision.grid]) for sample, vision in asked]
    longest = max(map(len, prompts)) + MAX_NEW_TOKENS
    if longest > model.max_positions:
        why = f"a prompt and its answer take {longest} tokens, and it has room for {model.max_positions}"
        raise BudgetError(bundle.folder, why, f"export it with --context {longest}")
    capacity = capacity_for(longest, model.max_positions)
    decoder = open_decoder(bundle, bundle.decoder, _threads(), capacity)
    ends = _ends(bundle)
    for prompt, vision, features, first in zip(prompts, visions, pictures, begun, strict=True):
        tokens, left = [*prompt, *first], MAX_NEW_TOKENS - len(first)
        is_image = np.array(tokens) == vision.image_token_id
        is_image[len(prompt) :] = False
        hidden = rows.gather(tokens)
        hidden[is_image] = features
        grids = [merged_grid(vision)] if model.rope.mrope_sections else None
        positions = prompt_positions(is_image.tolist(), grids)
        decoder.truncate(0)
        yield [*first, *generate(decoder, rows, tokens, hidden, positions, Sampler(Sampling()), ends, left)]
    decoder.close()


def _ends(bundle: Bundle) -> set[int]:
    return set(bundle.manifest.generation.eos_token_ids)


def drafter(bundle: Bundle, answers: Sequence[Sequence[int]]) -> Drafter:
    """Return the bundle, whose `answers` to all samples are known."""

    def draft(samples: Sequence[Sample], begun: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        return artifact_answers(bundle, samples, begun) if any(begun) else answers

    return Drafter(_ends(bundle), draft)


def reference_answers(
    original: Original, samples: Sequence[Sample], budget: int, drafter: Drafter, show: Show = lambda _: None
) -> list[str]:
    """Return what the original answers in fp32; kept in the cache by checkpoint and samples.

    transformers generates it. Where that takes more than the budget, or other weights than those that transformers
    finds in the folder (quantized ones are read by edgeglm), the original is streamed, and `drafter` drafts
    what it is asked: see `edgeglm.export.evaluate.original.streamed`.
    """

    def compute() -> list[str]:
        if is_streamed(original, budget):
            return streamed_answers(original, samples, drafter, show)
        agent, answers = WholeOriginal.load(original.folder), list[str]()
        size = max(1, BATCH * PARAMETERS // max(original.parameters, PARAMETERS))
        for some in _batches(samples, size):
            answers += _answer(agent, some)
            show(len(answers) / len(samples))
        return answers

    return cached(_key(original, samples), list[str], compute)


def _answer(agent: WholeOriginal, samples: Sequence[Sample]) -> Iterator[str]:
    return agent.answer([sample.image for sample in samples], [sample.messages for sample in samples], BATCH)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while some := list(islice(rest, size)):
        yield some


def _key(original: Original, samples: Sequence[Sample]) -> Iterator[bytes]:
    yield f"screens {MAX_NEW_TOKENS}".encode()
    yield checkpoint_key(original.folder, original.adapter_sha256)
    for sample in samples:
        yield repr(sample.messages).encode()
        yield sample.image.tobytes()


def _image_encoder(bundle: Bundle) -> Module:
    return next(module for module in bundle.manifest.modules if module.is_image)


def _threads() -> int:
    return len(os.sched_getaffinity(0))
