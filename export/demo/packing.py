"""Questions packed behind pictures: many in a sequence, each of which sees what its conversation has and no more.

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
BUCKET = 32  # sequence lengths are multiples of it: every new shape costs time and memory in the CPU kernels


@dataclass(frozen=True)
class Batch:
    """B sequences of length L with questions about pictures, and the system prompt of length S that they share.

    Sequences are as long as the longest conversation, since attention costs the square of their length.

    system (S) int64, padded, and is_system (S) bool of its own tokens; tokens, labels (B, L) int64; positions (3, B, L)
    int64; group (B, L) int64: tokens of one group may see each other, if their segment (B, L) is the same or 0, and
    those of negative groups nothing; has_system (B, L) bool: who sees the system prompt; images (I, 3) int64: sequence,
    position and picture of each image's tokens; pointers (P, 4) int64: sequence, position, patch row and patch column
    that it must know, (ROWS, COLUMNS) where there is nothing to tap.
    """

    pictures: Pictures
    system: Tensor
    is_system: Tensor
    tokens: Tensor
    labels: Tensor
    group: Tensor
    segment: Tensor
    has_system: Tensor
    positions: Tensor
    images: Tensor
    pointers: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return it on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})

    def mask(self) -> Tensor:
        """Return who sees whom, (B, L, S + L) bool: causal, and within a question's conversation."""
        length = self.tokens.shape[1]
        mine, theirs = self.segment[:, :, None], self.segment[:, None, :]
        is_one = (self.group[:, :, None] == self.group[:, None, :]) & ((theirs == 0) | (mine == theirs))
        causal = torch.ones(length, length, dtype=torch.bool, device=mine.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=mine.device)  # padding must attend to something
        prefix = self.has_system[:, :, None] & self.is_system
        return torch.cat([prefix, (causal & is_one & (self.group >= 0)[:, None]) | own], dim=2)


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
        length = _padded(max(group.length for group in groups))
        lines = _fill(groups, length)
        writer = _Writer(self, (len(lines), length), len(prefix))
        for number, line in enumerate(lines):
            writer.write(number, line)
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
    """Arrays of a batch that groups are written into."""

    def __init__(self, packer: Packer, shape: tuple[int, int], prefix: int) -> None:
        self.packer, self.prefix = packer, prefix
        self.tokens, self.labels = np.full(shape, packer.pad), np.full(shape, IGNORE)
        self.group, self.segment = np.full(shape, -1), np.zeros(shape, dtype=np.int64)
        self.has_system, self.positions = np.zeros(shape, dtype=bool), np.zeros((3, *shape), dtype=np.int64)
        self.picture = 0  # of the group that is written
        self.images: list[tuple[int, int, int]] = []
        self.pointers: list[tuple[int, int, int, int]] = []

    def write(self, row: int, groups: Sequence[_Group]) -> None:
        """Write groups one behind another into a sequence."""
        at = 0
        for number, group in enumerate(groups):
            stop = at + group.length
            self.group[row, at:stop], self.has_system[row, at:stop] = number, group.has_system
            self.picture = group.picture
            after = self._put(row, at, group.trunk, self.prefix if group.has_system else 0)
            at += len(group.trunk)
            for segment, branch in enumerate(group.branches, start=1):
                self.segment[row, at : at + len(branch.tokens)] = segment
                self._put(row, at, branch.tokens, after)
                self._ask(row, at, branch)
                at += len(branch.tokens)

    def _put(self, row: int, at: int, tokens: list[int], start: int) -> int:
        stop = at + len(tokens)
        self.tokens[row, at:stop] = tokens
        self.positions[:, row, at:stop], after = self.packer.positions(tokens, start)
        if self.packer.image in tokens:
            self.images.append((row, at + tokens.index(self.packer.image), self.picture))
        return after

    def _ask(self, row: int, at: int, branch: _Branch) -> None:
        """Note what must be answered, and the places at which the target's patch must be known."""
        first, answer = at + branch.first, branch.tokens[branch.first :]
        self.labels[row, first - 1 : first - 1 + len(answer)] = answer
        spots = [first - 2, first - 1]
        if answer:
            action = first + answer.index(self.packer.answer)
            spots += [action, action + 1]
        self.pointers += [(row, spot, *patch_of(branch.box)) for spot in spots]

    def batch(self, pictures: Pictures, system: Tensor, is_system: Tensor) -> Batch:
        """Return all of it."""
        return Batch(
            pictures=pictures,
            system=system,
            is_system=is_system,
            tokens=torch.from_numpy(self.tokens),
            labels=torch.from_numpy(self.labels),
            group=torch.from_numpy(self.group),
            segment=torch.from_numpy(self.segment),
            has_system=torch.from_numpy(self.has_system),
            positions=torch.from_numpy(self.positions),
            images=torch.tensor(self.images, dtype=torch.int64).reshape(-1, 3),
            pointers=torch.tensor(self.pointers, dtype=torch.int64).reshape(-1, 4),
        )


def _fill(groups: Sequence[_Group], length: int) -> list[list[_Group]]:
    """Return the groups in as few sequences of a length as come of it: the longest first, each where it fits first."""
    lines: list[list[_Group]] = []
    room: list[int] = []
    for group in sorted(groups, key=lambda group: -group.length):
        place = next((place for place, left in enumerate(room) if left >= group.length), len(lines))
        if place == len(lines):
            lines.append([])
            room.append(length)
        lines[place].append(group)
        room[place] -= group.length
    return lines


def _padded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET
