"""The prompts that modules are proven on: screens of the demo for the demo, seeded noise for any other model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.demo.samples import DATA, Sample, read_samples
from edgeglm.export.describe import describe_vision
from edgeglm.export.pipeline.module import POSITION
from edgeglm.export.pipeline.prepared import Prepared
from edgeglm.export.positions import position_embedding
from edgeglm.export.prove.values import Values, decoder_inputs
from edgeglm.runtimes.chat import Chat
from edgeglm.runtimes.image import to_patches
from edgeglm.runtimes.positions import prompt_positions

DEMO_SCREENS = 4
RANDOM_TOKENS = 16


@dataclass
class Prompt:
    """Tokens, which of them stand for the picture, its patches, and its features once they are known.

    The last `answer` of the tokens are the right answer, where it is given.
    """

    tokens: list[int]
    is_image: NDArray[np.bool_]
    grid: tuple[int, int] | None = None
    patches: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None
    answer: int = 0


@dataclass(frozen=True)
class Passage:
    """A window of text; the last `answer` of its tokens are what a model is compared on."""

    tokens: tuple[int, ...]
    answer: int


Example = Sample | Passage


def demo_prompts(prepared: Prepared) -> list[Prompt]:
    """The first calibration screens with their instructions."""
    return sample_prompts(prepared, read_samples(DATA / "calibration.jsonl", DEMO_SCREENS), answered=False)


def example_prompts(prepared: Prepared, examples: Iterable[Example]) -> list[Prompt]:
    """What is calibrated with: windows of text, or screens with the right answers."""
    samples: list[Sample] = []
    prompts: list[Prompt] = []
    for each in examples:
        if isinstance(each, Passage):
            prompts.append(Prompt(list(each.tokens), np.zeros(len(each.tokens), bool), answer=each.answer))
        else:
            samples.append(each)
    return prompts or sample_prompts(prepared, samples, answered=True)


def sample_prompts(prepared: Prepared, samples: Iterable[Sample], *, answered: bool) -> list[Prompt]:
    """Screens with their instructions, in the checkpoint's chat form, and behind them the right answers."""
    checkpoint, vision = prepared.checkpoint, prepared.probe.model.vision
    assert vision is not None
    assert prepared.opened.processor is not None
    described = describe_vision(vision, checkpoint.config, prepared.opened.processor)
    grid = (vision.grid[0] // vision.merge, vision.grid[1] // vision.merge)
    chat = Chat(checkpoint.folder, described)
    prompts = []
    for sample in samples:
        tokens = chat.encode(sample.messages)
        right = chat.tokenizer.encode(sample.expected.response, add_special_tokens=False).ids if answered else []
        is_image = np.array(tokens + right) == described.image_token_id
        patches = to_patches(sample.image, described)
        prompts.append(Prompt(tokens + right, is_image, grid, patches, answer=len(right)))
    return prompts


def random_prompts(prepared: Prepared) -> list[Prompt]:
    """One prompt of random tokens; pictures are noise, and are not part of it."""
    random = np.random.default_rng(0)
    length = min(RANDOM_TOKENS, prepared.opened.context)
    tokens = random.integers(0, prepared.model.decoder.vocabulary, length).tolist()
    vision, patches = prepared.probe.model.vision, None
    if vision:
        size = vision.channels * vision.temporal_patch * vision.patch**2
        patches = random.standard_normal((vision.grid[0] * vision.grid[1], size), np.float32)
    return [Prompt(tokens, np.zeros(len(tokens), bool), (1, 1) if vision else None, patches)]


def vision_inputs(prepared: Prepared, prompt: Prompt) -> Values:
    """Patches and position embedding of the probe's grid."""
    vision = prepared.probe.model.vision
    assert vision is not None
    assert prompt.patches is not None
    table = prepared.checkpoint.rows(f"{vision.prefix}embeddings.position_embedding.weight")
    return {"pixel_values": prompt.patches, POSITION: position_embedding(table, vision.grid, vision.merge)}


def embed(prepared: Prepared, prompt: Prompt) -> NDArray[np.float32]:
    """The rows of the table for a prompt's tokens: (tokens, hidden)."""
    table = prepared.probe.model.decoder.embedding
    return np.concatenate([prepared.checkpoint.rows(table, token, token + 1) for token in prompt.tokens])


def prompt_inputs(prepared: Prepared, prompt: Prompt, rows: NDArray[np.float32]) -> Values:
    """What a decoder takes: embedded tokens with the picture's features in their place, and positions."""
    hidden = rows[None].copy()
    if prompt.features is not None:
        hidden[0, prompt.is_image] = prompt.features
    sections = prepared.probe.model.decoder.mrope_section
    grids = [prompt.grid] if prompt.grid and prompt.is_image.any() else []
    positions = prompt_positions(prompt.is_image.tolist(), grids if sections else None)
    return decoder_inputs(hidden, positions)
