"""Stacks of equal blocks, and the units that can be removed of each block: MLP channels, and heads in whole groups.

A unit is some columns of the matrix that reads it, `down_proj` or `o_proj`, and the rows that make these columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.families.registry import family_of
from edgeglm.export.families.spec import DecoderSpec, EncoderSpec
from edgeglm.export.prepare.header_checks import GUESSING
from edgeglm.roles import DECODER, ModuleName

UnitKind = Literal["channels", "groups"]
Indices = NDArray[np.int64]
DOWN, OUT = "mlp.down_proj.weight", "self_attn.o_proj.weight"
# Those of a gated MLP, whose rows are its channels; the fused one has gates, then values.
MAKERS = ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj")
QUERIES, KEYS_VALUES = ("self_attn.q_proj",), ("self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Part:
    """A stack of blocks of a checkpoint.

    Args:
        module: The bundle's module that it becomes.
        section: The key of config.json that describes it; None for the whole.
        depth: That one's key of the number of blocks.
        blocks: The beginning of a block's names, with ``{layer}``.
        layers: How many blocks.
        width: The config's number of MLP channels.
        in_blocks: Whether it is that of the blocks' MLPs, not of the followers' alone.
        groups: Groups of query heads that share keys and values, each with its own; 0 where none can go.
        heads: Query heads of a group.
        head_dim: Channels of a head.
        followers: Beginnings of the names of further MLPs of this width.
    """

    module: ModuleName
    section: str | None
    depth: str
    blocks: str
    layers: int
    width: int
    in_blocks: bool = True
    groups: int = 0
    heads: int = 0
    head_dim: int = 0
    followers: tuple[str, ...] = ()

    def prefix(self, layer: int) -> str:
        """Return the beginning of a block's names."""
        return self.blocks.format(layer=layer)


@dataclass(frozen=True)
class Units:
    """The units of one kind in a block or a follower.

    Args:
        part: The stack.
        kind: Theirs.
        prefix: The beginning of the names.
    """

    part: Part
    kind: UnitKind
    prefix: str

    @property
    def reader(self) -> str:
        """The matrix that has them as columns."""
        down = DOWN if self.prefix not in self.part.followers else DOWN.removeprefix("mlp.")
        return self.prefix + (down if self.kind == "channels" else OUT)

    @property
    def count(self) -> int:
        """The number of units."""
        return self.part.width if self.kind == "channels" else self.part.groups

    @property
    def size(self) -> int:
        """Columns of a unit."""
        return 1 if self.kind == "channels" else self.part.heads * self.part.head_dim

    def columns(self, kept: Indices) -> Indices:
        """Return the reader's columns of units."""
        return _spread(kept, self.size)

    def rows(self, checkpoint: Checkpoint, kept: Indices) -> Iterator[tuple[str, Indices]]:
        """Yield each tensor that makes units, and its rows for those: [copies, units, rows of a unit]."""
        for name, step in self._makers():
            for suffix in ("weight", "bias"):
                tensor = checkpoint.tensors.get(f"{self.prefix}{name}.{suffix}")
                if tensor is not None:
                    copies = tensor.shape[0] // (self.count * step)
                    offsets = np.arange(copies)[:, None, None] * self.count * step
                    yield tensor.name, offsets + _spread(kept, step).reshape(1, -1, step)

    def _makers(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each module that makes units, and its rows of a unit."""
        if self.kind == "channels":
            inside = self.prefix not in self.part.followers
            yield from ((name if inside else name.removeprefix("mlp."), 1) for name in MAKERS)
        else:
            yield from ((name, self.size) for name in QUERIES)
            yield from ((name, self.part.head_dim) for name in KEYS_VALUES)

    def parameters(self, checkpoint: Checkpoint) -> int:
        """Return the weights of one unit."""
        made = sum(
            rows.size * math.prod(checkpoint.find(name).shape[1:])
            for name, rows in self.rows(checkpoint, np.zeros(1, np.int64))
        )
        return made + self.size * checkpoint.find(self.reader).shape[0]


def _spread(units: Indices, size: int) -> Indices:
    return (units[:, None] * size + np.arange(size)).ravel()


def units_of(part: Part) -> list[Units]:
    """Return the units of all blocks and followers of a stack."""
    prefixes = [part.prefix(layer) for layer in range(part.layers)]
    channels = [Units(part, "channels", prefix) for prefix in (*(prefixes * part.in_blocks), *part.followers)]
    return channels + [Units(part, "groups", prefix) for prefix in prefixes if part.groups]


def find_parts(checkpoint: Checkpoint) -> list[Part]:
    """Return the stacks of a checkpoint that something can be removed of: the decoder, and its towers.

    Its config and headers say it, so that no model is built for it. Raises DamagedFileError.
    """
    family = family_of(checkpoint.config)
    towers = (_tower(checkpoint, spec) for spec in family.encoders if checkpoint.config.get(spec.config) is not None)
    return [_decoder(checkpoint, family.decoder), *towers]


def _decoder(checkpoint: Checkpoint, spec: DecoderSpec) -> Part:
    section, first = "text_config" if "text_config" in checkpoint.config else None, spec.blocks.format(layer=0)
    text, depth = checkpoint.config[section] if section else checkpoint.config, "num_hidden_layers"
    part = Part(
        DECODER,
        section,
        depth,
        spec.blocks,
        layers=_layers(checkpoint, text, depth, spec.blocks),
        width=checkpoint.find(first + DOWN).shape[1],
    )
    head_dim = _head_dim(text, spec)
    if not spec.free_heads or not head_dim:
        return part
    queries, keys = (checkpoint.find(f"{first}{names[0]}.weight").shape[0] for names in (QUERIES, KEYS_VALUES))
    return replace(part, groups=keys // head_dim, heads=queries // keys, head_dim=head_dim)


def _tower(checkpoint: Checkpoint, spec: EncoderSpec) -> Part:
    """Return a tower; which MLP has the width of its config, its family says."""
    end = next((extent.weight for extent in spec.extents if extent.key == "intermediate_size"), None)
    readers = [name for name in checkpoint.tensors if end and name.endswith(end)]
    inside = [name for name in readers if name.startswith(spec.blocks.format(layer=0))]
    return Part(
        spec.name,
        spec.config,
        spec.depth,
        spec.blocks,
        layers=_layers(checkpoint, checkpoint.config[spec.config], spec.depth, spec.blocks),
        width=checkpoint.find(readers[0]).shape[1] if readers else 0,
        in_blocks=bool(inside),
        followers=tuple(name.removesuffix("down_proj.weight") for name in readers if name not in inside),
    )


def _layers(checkpoint: Checkpoint, section: Mapping[str, Any], depth: str, blocks: str) -> int:
    """Return how many blocks a config states; where it states none, how many the weights have."""
    if (stated := section.get(depth)) is not None:
        return int(stated)
    start = blocks.partition("{")[0]
    there = {name.removeprefix(start).partition(".")[0] for name in checkpoint.tensors if name.startswith(start)}
    return len(there) - int(section.get(GUESSING) or 0)


def _head_dim(section: Mapping[str, Any], spec: DecoderSpec) -> int:
    """Return the channels of a head; 0 where the config does not say it."""
    if stated := section.get("head_dim") or spec.head_dim:
        return int(stated)
    hidden, heads = section.get("hidden_size"), section.get("num_attention_heads")
    return hidden // heads if hidden and heads else 0
