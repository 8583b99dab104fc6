"""Questions packed behind pictures: many in one sequence, each of which sees what its conversation has and no more.

A question's tokens, positions and logits are those of the conversation alone, as the chat template writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from edgeglm.export.demo.client import conversation
from edgeglm.export.demo.pictures import CELL_COLUMNS, CELL_ROWS, IMAGE_TOKENS, Pictures, patch_of
from edgeglm.export.demo.screens import Box
from edgeglm.export.demo.steps import Step

IGNORE = -100
BUCKET = 32  # lengths of groups are multiples of it: every new shape costs time and memory in the CPU kernels


@dataclass(frozen=True)
class Batch:
    """A sequence of L tokens with G groups of questions about pictures, and the system prompt that groups share.

    system (S) int64, padded, and is_system (S) bool of its own tokens; tokens, labels (L) int64; positions (3, L)
    int64; lengths (G) int64: of each group in the sequence, its padding included; has_system (G) bool: which see the
    system prompt; segment (L) int64: within a group tokens see each other if their segment is the same or 0, and
    padding's is negative; images (I, 2) int64: position and picture of each image's tokens; pointers (P, 3) int64:
    position, patch row and patch column that it must know, (ROWS, COLUMNS) where there is nothing to tap.
    """

    pictures: Pictures
    system: Tensor
    is_system: Tensor
    tokens: Tensor
    labels: Tensor
    lengths: Tensor
    has_system: Tensor
    segment: Tensor
    positions: Tensor
    images: Tensor
    pointers: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return it on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})

    def masks(self) -> list[Tensor]:
        """Return who sees whom in each group of length N: (N, S + N) bool behind the system prompt, else (N, N)."""
        return [
            self._mask(*group) for group in zip(self.segment.split(self.lengths.tolist()), self.has_system, strict=True)
        ]

    def _mask(self, segment: Tensor, has_system: Tensor) -> Tensor:
        mask = ((segment[:, None] == segment) | (segment == 0)).tril()  # padding comes last: nothing else sees it
        return torch.cat([self.is_system.expand(len(segment), -1), mask], 1) if has_system else mask


@dataclass(frozen=True)
class Row:
    """A picture's questions: in the short form, or as the client sends them, its history with tags or without."""

    steps: tuple[Step, ...]
    is_client: bool
    keeps_tags: bool = True


@dataclass(frozen=True)
class _Branch:
    """Tokens of a question behind its trunk, of which those from `first` on are the answer."""

    tokens: list[int]
    first: int
    box: Box | None


@dataclass(frozen=True)
class _Group:
    """A trunk of tokens with branches about one picture, none of which sees another."""

    picture: int
    has_system: bool
    trunk: list[int]
    branches: list[_Branch]

    @property
    def length(self) -> int:
        return len(self.trunk) + sum(len(branch.tokens) for branch in self.branches)


class Packer:
    """Packs steps into batches, with a tokenizer.

    Args:
        tokenizer: With the special tokens and the tags of `model`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.encoder: Tokenizer = tokenizer.backend_tokenizer
        self.token = tokenizer.get_vocab()
        self.pad = self.token["<|endoftext|>"]
        self.answer, self.end, self.image = (self.token[name] for name in ("<answer>", "</answer>", "<|image|>"))
        ends = (self.token[f"<|{end}_of_image|>"] for end in ("begin", "end"))
        first, last = ends
        self.picture = [first, *[self.image] * IMAGE_TOKENS, last]
        self.start = [self.token["[gMASK]"], self.token["<sop>"]]
        self.reply = self.role("assistant", "")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, special tokens only where they are written out."""
        return list(self.encoder.encode(text, add_special_tokens=False).ids)

    def role(self, role: str, text: str) -> list[int]:
        """Return the tokens of a message up to the end of a text with which it begins."""
        return [self.token[f"<|{role}|>"], *self.encode(f"\n{text}")]

    def pack(self, pictures: Pictures, rows: Sequence[Row], system: str, answers: bool = True) -> Batch:
        """Return one batch of screens and what is asked about each.

        Args:
            pictures: The screens.
            rows: The questions about each.
            system: The system prompt that all of them share.
            answers: Else a question ends where its answer would begin, and only points; but a text is still typed.
        """
        prefix = [*self.start, *self.role("system", system)]
        groups = [group for picture, row in enumerate(rows) for group in self._groups(picture, row, answers)]
        writer = _Writer(self, groups, len(prefix))
        padded = np.full(_padded(len(prefix)), self.pad)
        padded[: len(prefix)] = prefix
        return writer.batch(pictures, torch.from_numpy(padded), torch.arange(len(padded)) < len(prefix))

    def _groups(self, picture: int, row: Row, answers: bool) -> list[_Group]:
        """Return a picture's questions: those without a history behind one image, the others each behind its own."""
        trunk = [*([] if row.is_client else self.start), *self.role("user", ""), *self.picture]
        shared, groups = list[_Branch](), list[_Group]()
        for step in row.steps:
            answer = self.encode(step.response) if answers or step.typed else []
            if not row.is_client:
                shared.append(self._branch([], step.prompt, answer, step.box))
                continue
            (_, *before), text = conversation(step, "", row.keeps_tags)
            if not before:
                shared.append(self._branch([], text, answer, step.box))
                continue
            history = [token for role, text in before for token in self.role(role, text)]
            groups.append(_Group(picture, True, [], [self._branch([*history, *trunk], text, answer, step.box)]))
        return [*([_Group(picture, row.is_client, trunk, shared)] if shared else []), *groups]

    def _branch(self, before: list[int], text: str, answer: list[int], box: Box | None) -> _Branch:
        prompt = [*before, *self.encode(text), *self.reply]
        return _Branch([*prompt, *answer], len(prompt), box)

    def positions(self, tokens: Sequence[int], start: int) -> tuple[NDArray[np.int64], int]:
        """Return the M-RoPE positions (3, N) of tokens, and the position after them.

        Image tokens count rows and columns; the text goes on after the larger of both.
        """
        positions = np.zeros((3, len(tokens)), dtype=np.int64)
        at = 0
        while at < len(tokens):
            if tokens[at] == self.image:
                grid = np.indices((1, CELL_ROWS, CELL_COLUMNS)).reshape(3, -1)
                positions[:, at : at + IMAGE_TOKENS] = grid + start
                at, start = at + IMAGE_TOKENS, start + max(CELL_ROWS, CELL_COLUMNS)
            else:
                positions[:, at] = start
                at, start = at + 1, start + 1
        return positions, start


class _Writer:
    """Arrays of a batch that groups are written into, one behind another."""

    def __init__(self, packer: Packer, groups: Sequence[_Group], prefix: int) -> None:
        self.packer, self.prefix = packer, prefix
        self.lengths, self.has_system = (
            [_padded(group.length) for group in groups],
            [group.has_system for group in groups],
        )
        length = sum(self.lengths)
        self.tokens, self.labels = np.full(length, packer.pad), np.full(length, IGNORE)
        self.segment, self.positions = np.full(length, -1), np.zeros((3, length), dtype=np.int64)
        self.images: list[tuple[int, int]] = []
        self.pointers: list[tuple[int, int, int]] = []
        for group, stop in zip(groups, np.cumsum(self.lengths), strict=True):
            self._write(group, int(stop) - _padded(group.length))

    def _write(self, group: _Group, at: int) -> None:
        after = self._put(group, at, group.trunk, self.prefix if group.has_system else 0)
        self.segment[at : at + len(group.trunk)] = 0
        at += len(group.trunk)
        for segment, branch in enumerate(group.branches, start=1):
            self.segment[at : at + len(branch.tokens)] = segment
            self._put(group, at, branch.tokens, after)
            self._ask(at, branch)
            at += len(branch.tokens)

    def _put(self, group: _Group, at: int, tokens: list[int], start: int) -> int:
        stop = at + len(tokens)
        self.tokens[at:stop] = tokens
        self.positions[:, at:stop], after = self.packer.positions(tokens, start)
        if self.packer.image in tokens:
            self.images.append((at + tokens.index(self.packer.image), group.picture))
        return after

    def _ask(self, at: int, branch: _Branch) -> None:
        """Note what must be answered, and the places at which the target's patch must be known."""
        first, answer = at + branch.first, branch.tokens[branch.first :]
        self.labels[first - 1 : first - 1 + len(answer)] = answer
        spots = [first - 2, first - 1]
        if answer:
            action = first + answer.index(self.packer.answer)
            spots += [action, action + 1]
        self.pointers += [(spot, *patch_of(branch.box)) for spot in spots]

    def batch(self, pictures: Pictures, system: Tensor, is_system: Tensor) -> Batch:
        """Return all of it."""
        return Batch(
            pictures=pictures,
            system=system,
            is_system=is_system,
            tokens=torch.from_numpy(self.tokens),
            labels=torch.from_numpy(self.labels),
            lengths=torch.tensor(self.lengths),
            has_system=torch.tensor(self.has_system),
            segment=torch.from_numpy(self.segment),
            positions=torch.from_numpy(self.positions),
            images=torch.tensor(self.images, dtype=torch.int64).reshape(-1, 2),
            pointers=torch.tensor(self.pointers, dtype=torch.int64).reshape(-1, 3),
        )


def _padded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET
