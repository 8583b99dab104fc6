"""Data that travels between the stages of an export."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeglm.engines import DIALECTS, ENGINES, USUAL_FORMAT, Dialect, EngineName, GraphKind, Placement
from edgeglm.roles import ENCODERS, HasRole, ModuleName

if TYPE_CHECKING:  # of a plan or a comparison, nothing else needs it
    import onnx_ir as ir

Grid = tuple[int, int]  # rows and columns of patches
# How a rotary embedding turns a head's channels: neighbours together, or those of its first half with its second's.
RotaryStyle = Literal["pairs", "halves"]
# What a decoder's keys and values are stored in, between its steps.
KvType = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class Decoder:
    """A stack of equal decoder blocks between an embedding table and a language-model head.

    Weight names are those of the checkpoint; ``blocks`` holds ``{layer}`` where the layer's number goes.
    ``mrope_section`` is empty where positions are one number a token, else the rotary channels of time, row, column.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    vocabulary: int
    epsilon: float
    max_positions: int
    mrope_section: tuple[int, ...]
    blocks: str
    embedding: str
    norm: str
    head: str
    style: RotaryStyle = "pairs"


@dataclass(frozen=True)
class Encoder:
    """A stack of equal blocks that makes features, which stand in a decoder's input for tokens.

    `prefix` is what the names of its weights begin with, and `back` are the beginnings of those behind the blocks.
    `token` is what stands for its input in a prompt, as often as `tokens` says.
    """

    layers: int
    hidden: int
    heads: int
    output: int
    blocks: str
    prefix: str
    back: tuple[str, ...]
    token: int

    @property
    def tokens(self) -> int:
        """The tokens of an input, which are rows of the features."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """The hidden states that a block computes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Vision(Encoder):
    """A vision tower for one grid of patches: patch embedding, equal blocks, merger.

    `position` is the weight of its table of positions, which is interpolated to the grid. `start_token` and `end_token`
    stand around a picture's.
    """

    patch: int
    temporal_patch: int
    merge: int
    channels: int
    grid: Grid
    position: str
    start_token: int
    end_token: int

    @property
    def tokens(self) -> int:
        """The merged patches."""
        return self.positions // self.merge**2

    @property
    def positions(self) -> int:
        """The patches."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Audio(Encoder):
    """An audio tower for a window of log-mel frames: convolutions that take `stride` frames a position, blocks, merger.

    `merge` positions side by side are one token.
    """

    mel_bins: int
    frames: int
    stride: int
    merge: int

    @property
    def tokens(self) -> int:
        """The merged positions."""
        return self.positions // self.merge

    @property
    def positions(self) -> int:
        """The frames that the convolutions leave."""
        return self.frames // self.stride


@dataclass(frozen=True)
class Model:
    """A checkpoint's architecture and the modules it has."""

    architecture: str
    family: str
    decoder: Decoder
    vision: Vision | None = None
    audio: Audio | None = None

    @property
    def encoders(self) -> dict[ModuleName, Encoder]:
        """The encoders that it has, by their module's name."""
        found = {name: getattr(self, name) for name in ENCODERS}
        return {name: encoder for name, encoder in found.items() if encoder is not None}


@dataclass(frozen=True)
class Choice(HasRole):
    """The choices for a module; `precision` names a scheme of `edgeglm.export.quantize.schemes`.

    `parts` are those that have another one: ``layer.0`` and so on, and what is before (``front``) and behind (``back``)
    the layers. `kv` is what a decoder's keys and values are stored in.
    """

    name: ModuleName
    precision: str
    placement: Placement
    engine: EngineName | None
    dialect: Dialect
    parts: tuple[tuple[str, str], ...] = ()
    kv: KvType = "fp32"

    @property
    def precisions(self) -> frozenset[str]:
        """The precisions that occur."""
        return frozenset([self.precision, *dict(self.parts).values()])

    @property
    def stated(self) -> str:
        """The one precision, or ``mixed``."""
        return "mixed" if self.parts else self.precision

    def precision_of(self, part: str) -> str:
        """Return the precision of one part."""
        return dict(self.parts).get(part, self.precision)

    @property
    def half(self) -> bool:
        """Whether activations are in half precision: on an accelerator they are, unless all is to be fp32."""
        return self.engine is not None and ENGINES[self.engine].half and self.precisions != {"fp32"}

    @property
    def is_converted(self) -> bool:
        """Whether a converter writes its files, from the checkpoint instead of from the graph."""
        return self.engine is not None and ENGINES[self.engine].reads != USUAL_FORMAT

    @property
    def kind(self) -> GraphKind:
        """The facts of its dialect."""
        return DIALECTS[self.dialect]


@dataclass(frozen=True)
class Part:
    """A stored array of a weight whose Linear layer has N output rows and K input columns.

    Args:
        suffix: What to append to the weight's name: ``weight`` or ``scale``.
        dtype: The stored element type; two INT4 elements share a byte, the first in its low half.
        shape: The logical shape, in elements.
        row_axis: The axis of the stored array along which the weight's rows run: 0 where a chunk of rows appends its
            bytes, 1 in a [K, N] array, where it fills a strip of columns.
    """

    suffix: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    row_axis: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return (math.prod(self.shape) * self.dtype.bitwidth + 7) // 8

    @property
    def row_multiple(self) -> int:
        """The multiple that the rows of every chunk must be, so that no two chunks share a byte."""
        return 8 // self.dtype.bitwidth if self.row_axis == 1 and self.dtype.bitwidth < 8 else 1


@dataclass(frozen=True)
class Stored:
    """A matrix or vector to write: the rows of the checkpoint's tensors `names`, one after the other.

    `initializers` are the graph's names of `parts`. A vector has one column. With `split_rotary` the first so many
    rows of every `head_dim` are stored even ones first. `scheme` is one of `quantize.schemes`.
    """

    names: tuple[str, ...]
    rows: int
    columns: int
    scheme: Any
    parts: tuple[Part, ...]
    initializers: tuple[str, ...]
    split_rotary: int = 0
    head_dim: int = 0


def rotary_order(rotary: int, head_dim: int) -> NDArray[np.int64]:
    """Return a head's channels, of the first `rotary` the even ones before the odd ones: [head_dim]."""
    head = np.arange(head_dim)
    return np.concatenate([head[:rotary:2], head[1:rotary:2], head[rotary:]])


class HasShape(Protocol):
    """A tensor of a checkpoint, not read yet."""

    @property
    def file(self) -> Path:
        """The file that it is in."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, outermost first."""


class Rows(Protocol):
    """A source of weights, read some rows at a time: `edgeglm.export.checkpoint.Checkpoint`."""

    def find(self, name: str) -> HasShape:
        """Return the tensor of that name; an error for the user where there is none."""

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the rows of a tensor as they are stored."""

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return the rows of a tensor as fp32, C-contiguous."""

    def decode(self, name: str, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the whole rows that `read_bytes` gave, as fp32."""


class Original(Rows, Protocol):
    """A checkpoint that a bundle is compared with."""

    @property
    def folder(self) -> Path:
        """The folder of its config, tokenizer and image processor."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of its ``config.json``."""

    @property
    def tensors(self) -> Mapping[str, HasShape]:
        """The weights by their names."""

    @property
    def adapter_sha256(self) -> str | None:
        """The hash of the adapter that is merged into its weights, if one is."""

    @property
    def is_plain(self) -> bool:
        """Whether transformers reads its weights as they lie in its folder, and gets the same ones."""

    @property
    def parameters(self) -> int:
        """The number of its weights."""
