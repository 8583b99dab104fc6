"""Training batches: fresh screens, several questions packed behind each image, targets for the helper losses.

Everything of a batch derives from its index, so that a resumed run sees the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from edgeglm.export.demo.model import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH
from edgeglm.export.demo.render import render
from edgeglm.export.demo.screens import CHINESE, HEIGHT, WIDTH, Box, Scene, sample_scene
from edgeglm.export.demo.steps import Step
from edgeglm.export.demo.tasks import sample_pointing, sample_practice, sample_step

ROWS, COLUMNS = HEIGHT // PATCH, WIDTH // PATCH  # of patches
CELL = PATCH * MERGE  # model pixels under one image token
CELL_ROWS, CELL_COLUMNS = ROWS // MERGE, COLUMNS // MERGE
IMAGE_TOKENS = CELL_ROWS * CELL_COLUMNS
CLASSES = {name: index for index, name in enumerate(CHINESE)}
IGNORE = -100
PRACTICE = 0.4  # the share of questions that practise what is hardest
BUCKET = 32  # sequence lengths are multiples of it: every new shape costs time and memory in the CPU kernels


@dataclass(frozen=True)
class Cells:
    """The centres of elements: cells[i] = (image, image token, class), inside[i] = (x, y, on) in 0..1."""

    cells: Tensor
    inside: Tensor


@dataclass(frozen=True)
class Batch:
    """B images with K questions each, packed into sequences of length L.

    pixels (B, HEIGHT, WIDTH, 3) uint8; tokens, labels, segment (B, L) int64; positions (3, B, L) int64;
    pointers (P, 4) int64: image, position in the sequence, patch row and patch column it must know; (ROWS, COLUMNS)
    where there is nothing to tap.
    """

    pixels: Tensor
    tokens: Tensor
    labels: Tensor
    segment: Tensor
    positions: Tensor
    pointers: Tensor
    elements: Cells

    def mask(self) -> Tensor:
        """Return the attention mask, (B, 1, L, L) bool: causal; a question sees the image and itself alone."""
        length = self.segment.shape[1]
        mine, theirs = self.segment[:, :, None], self.segment[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        own = torch.eye(length, dtype=torch.bool)  # padding must attend to something
        return ((causal & ((theirs == 0) | (mine == theirs))) | own)[:, None]


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the screenshot at the model's size, resized as the image processor does: (HEIGHT, WIDTH, 3) uint8."""
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def to_patches(pixels: Tensor) -> Tensor:
    """Map (B, HEIGHT, WIDTH, 3) in 0..255 to normalized (B, ROWS * COLUMNS, 3 * PATCH * PATCH) in merge-block order."""
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    x = pixels.float().div(255).sub(mean).div(std)
    x = x.view(-1, CELL_ROWS, MERGE, PATCH, CELL_COLUMNS, MERGE, PATCH, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, ROWS * COLUMNS, 3 * PATCH * PATCH)


class Packer:
    """Lays out ``prefix image question answer question answer …``, every question at the same position."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.encoder: Tokenizer = tokenizer.backend_tokenizer
        token = tokenizer.get_vocab()
        newline = self.encode("\n")
        self.prefix = [
            *(token[name] for name in ("[gMASK]", "<sop>", "<|user|>")),
            *newline,
            token["<|begin_of_image|>"],
            *[token["<|image|>"]] * IMAGE_TOKENS,
            token["<|end_of_image|>"],
        ]
        self.image_start = self.prefix.index(token["<|image|>"])
        self.assistant = [token["<|assistant|>"], *newline]
        self.answer = token["<answer>"]
        self.end = token["<|endoftext|>"]
        self.prefix_positions = self._prefix_positions()
        self.text_start = int(self.prefix_positions.max()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, special tokens only where they are written out."""
        return list(self.encoder.encode(text, add_special_tokens=False).ids)

    def _prefix_positions(self) -> NDArray[np.int64]:
        """Return the M-RoPE positions (3, P): image tokens count rows and columns, text goes on after the larger."""
        start, length = self.image_start, len(self.prefix)
        positions = np.tile(np.arange(length), (3, 1))
        grid = np.indices((1, CELL_ROWS, CELL_COLUMNS)).reshape(3, -1) + start
        positions[:, start : start + IMAGE_TOKENS] = grid
        after = start + max(CELL_ROWS, CELL_COLUMNS)
        positions[:, start + IMAGE_TOKENS :] = after + np.arange(length - start - IMAGE_TOKENS)
        return positions

    def pack(
        self, pixels: NDArray[np.uint8], scenes: list[Scene], steps: list[list[Step]], answers: bool = True
    ) -> Batch:
        """Return one batch of images (B, HEIGHT, WIDTH, 3), their scenes and the steps asked about each.

        Without `answers` a question ends where its answer would begin, and only points; but a text is still typed.
        """
        encode = self.encode

        def answer_of(step: Step) -> list[int]:
            return [*encode(step.response), self.end] if answers or step.typed else []

        rows = [[(encode(step.prompt), answer_of(step), step.box) for step in row] for row in steps]
        longest = max(sum(len(q) + len(self.assistant) + len(a) for q, a, _ in row) for row in rows)
        shape = (len(rows), -(-(len(self.prefix) + longest) // BUCKET) * BUCKET)
        tokens, labels = np.full(shape, self.end), np.full(shape, IGNORE)
        segment, positions = np.full(shape, -1), np.zeros((3, *shape), dtype=np.int64)
        start = len(self.prefix)
        tokens[:, :start], segment[:, :start] = self.prefix, 0
        positions[:, :, :start] = self.prefix_positions[:, None]
        pointers: list[tuple[int, int, int, int]] = []
        for image, row in enumerate(rows):
            at = start
            for number, (question, answer, box) in enumerate(row, start=1):
                prompt = [*question, *self.assistant]
                whole = [*prompt, *answer]
                stop, first = at + len(whole), at + len(prompt)
                tokens[image, at:stop], segment[image, at:stop] = whole, number
                labels[image, first - 1 : stop - 1] = whole[len(prompt) :]
                positions[:, image, at:stop] = self.text_start + np.arange(len(whole))
                spots = [first - 2, first - 1]
                if answer:
                    spots += [at + whole.index(self.answer), at + whole.index(self.answer) + 1]
                patch = _patch_of(box) if box else (ROWS, COLUMNS)
                pointers += [(image, spot, *patch) for spot in spots]
                at = stop
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(tokens),
            torch.from_numpy(labels),
            torch.from_numpy(segment),
            torch.from_numpy(positions),
            torch.tensor(pointers, dtype=torch.int64).reshape(-1, 4),
            _cells(scenes),
        )


def _patch_of(box: Box) -> tuple[int, int]:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return min(ROWS - 1, max(0, int(y / PATCH))), min(COLUMNS - 1, max(0, int(x / PATCH)))


def _cells(scenes: list[Scene]) -> Cells:
    cells, inside = [], []
    for image, scene in enumerate(scenes):
        for element in scene.elements:
            x, y = element.centre
            column = min(CELL_COLUMNS - 1, max(0, int(x / CELL)))
            row = min(CELL_ROWS - 1, max(0, int(y / CELL)))
            cells.append((image, row * CELL_COLUMNS + column, CLASSES[element.name]))
            inside.append((x / CELL - column, y / CELL - row, float(element.on)))
    # A few screens may hold nothing at all.
    where = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3)
    return Cells(where, torch.tensor(inside, dtype=torch.float32).reshape(-1, 3))


@dataclass(frozen=True)
class Recipe:
    """The content of a training batch."""

    images: int
    questions: int
    sparse: bool = False  # fewer elements on a screen than there will be
    answers: bool = True  # else questions that only point


class Batches(Dataset[Batch]):
    """Batch `index` of the training data of `split`, made on the fly to the recipe of that index."""

    def __init__(self, packer: Packer, split: str, recipe: Callable[[int], Recipe]) -> None:
        self.packer, self.split, self.recipe = packer, split, recipe

    def __getitem__(self, index: int) -> Batch:
        recipe = self.recipe(index)
        scenes, steps, pixels = [], [], []
        for image in range(recipe.images):
            random = Random(f"{self.split}/{index}/{image}")
            density = 0.35 if recipe.sparse else 1.0
            scene = sample_scene(random, density)
            while not (recipe.answers or scene.elements):
                scene = sample_scene(random, density)
            scenes.append(scene)
            steps.append([self._ask(recipe, scene, random) for _ in range(recipe.questions)])
            bright = random.uniform(0.85, 1.1)
            pixels.append((to_pixels(render(scene)) * bright).clip(0, 255).astype(np.uint8))
        return self.packer.pack(np.stack(pixels), scenes, steps, recipe.answers)

    def _ask(self, recipe: Recipe, scene: Scene, random: Random) -> Step:
        if not recipe.answers:
            return sample_pointing(scene, random)
        return (sample_practice if random.random() < PRACTICE else sample_step)(scene, random)
