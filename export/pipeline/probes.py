"""The prompts that modules are proven on: screens of the demo for the demo, seeded noise for any other model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeglm.export.demo.samples import DATA, read_samples
from edgeglm.export.describe import describe_vision
from edgeglm.export.pipeline.prepare import Prepared
from edgeglm.runtimes.image import to_patches

DEMO_SCREENS = 4
RANDOM_TOKENS = 16


@dataclass
class Prompt:
    """Tokens, which of them stand for the picture, its patches, and its features once they are known."""

    tokens: list[int]
    is_image: NDArray[np.bool_]
    grid: tuple[int, int] | None = None
    patches: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None


def demo_prompts(prepared: Prepared) -> list[Prompt]:
    """The first calibration screens with their instructions, in GLM-4.1V's chat form."""
    checkpoint, vision = prepared.checkpoint, prepared.probe.model.vision
    assert vision is not None
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    described = describe_vision(vision, checkpoint.config, prepared.opened.preprocessor)
    grid = (vision.grid[0] // vision.merge, vision.grid[1] // vision.merge)
    picture = f"<|begin_of_image|>{'<|image|>' * (grid[0] * grid[1])}<|end_of_image|>"
    prompts = []
    for sample in read_samples(DATA / "calibration.jsonl", DEMO_SCREENS):
        text = f"[gMASK]<sop><|user|>\n{picture}{sample.prompt}<|assistant|>\n"
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        is_image = np.array(tokens) == described.image_token_id
        prompts.append(Prompt(tokens, is_image, grid, to_patches(sample.image, described)))
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
