"""Training batches: fresh screens, several questions packed behind each image, targets for the helper losses.

Everything of a batch derives from its index, so that a resumed run sees the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from edgeglm.export.demo.pictures import CELL_COLUMNS, CELL_ROWS, IMAGE_TOKENS, Pictures, patch_of, take_pictures
from edgeglm.export.demo.screens import Scene, sample_scene
from edgeglm.export.demo.stages import Stage
from edgeglm.export.demo.steps import Step
from edgeglm.export.demo.tasks import sample_pointing, sample_practice, sample_step

IGNORE = -100
PRACTICE = 0.4  # the share of questions that practise what is hardest
BUCKET = 32  # sequence lengths are multiples of it: every new shape costs time and memory in the CPU kernels


@dataclass(frozen=True)
class Batch:
    """B images with K questions each, packed into sequences of length L.

    tokens, labels, segment (B, L) int64; positions (3, B, L) int64;
    pointers (P, 4) int64: image, position in the sequence, patch row and patch column it must know; (ROWS, COLUMNS)
    where there is nothing to tap.
    """

    pictures: Pictures
    tokens: Tensor
    labels: Tensor
    segment: Tensor
    positions: Tensor
    pointers: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return it on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items()}
        return Batch(**moved)

    def mask(self) -> Tensor:
        """Return the attention mask, (B, 1, L, L) bool: causal; a question sees the image and itself alone."""
        length = self.segment.shape[1]
        mine, theirs = self.segment[:, :, None], self.segment[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        own = torch.eye(length, dtype=torch.bool)  # padding must attend to something
        return ((causal & ((theirs == 0) | (mine == theirs))) | own)[:, None]


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

    def pack(self, pictures: Pictures, steps: list[list[Step]], answers: bool = True) -> Batch:
        """Return one batch of screens and the steps asked about each.

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
                patch = patch_of(box)
                pointers += [(image, spot, *patch) for spot in spots]
                at = stop
        return Batch(
            pictures,
            torch.from_numpy(tokens),
            torch.from_numpy(labels),
            torch.from_numpy(segment),
            torch.from_numpy(positions),
            torch.tensor(pointers, dtype=torch.int64).reshape(-1, 4),
        )


class Batches(Dataset[Batch | Pictures]):
    """Batch `index` of the training data of a stage, made on the fly."""

    def __init__(self, packer: Packer, split: str, stage: Stage) -> None:
        self.packer, self.split, self.stage = packer, split, stage

    def __getitem__(self, index: int) -> Batch | Pictures:
        stage = self.stage
        random = Random(f"{self.split}/{stage.name}/{index}")
        scenes = [self._scene(index, random) for _ in range(stage.images)]
        pictures = take_pictures(scenes, random)
        if stage.kind == "vision":
            return pictures
        steps = [[self._ask(scene, random) for _ in range(stage.questions)] for scene in scenes]
        return self.packer.pack(pictures, steps, stage.kind == "answers")

    def _scene(self, index: int, random: Random) -> Scene:
        density = 0.35 if index < self.stage.sparse else 1.0
        scene = sample_scene(random, density)
        while self.stage.kind == "pointing" and not scene.elements:
            scene = sample_scene(random, density)
        return scene

    def _ask(self, scene: Scene, random: Random) -> Step:
        if self.stage.kind == "pointing":
            return sample_pointing(scene, random)
        return (sample_practice if random.random() < PRACTICE else sample_step)(scene, random)
