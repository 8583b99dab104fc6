"""The parts of a decoder as they are traced: rotary angles, a block with its keys and values, and the head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from edgeglm.export.families.tower import Part
from edgeglm.export.model import Decoder
from edgeglm.export.trace.dialects import Step

# Has transformers' attention and rotary functions be the dialect's: given cosines, sines and the state.
Hook = Callable[..., AbstractContextManager[Step]]
# Sizes of the example inputs; none equal, so that no two dynamic axes are taken for one.
LENGTH, PAST = 5, 11
# Where a slice ends that goes to the end.
END = 2**31 - 1


class DecoderFront(nn.Module):
    """Positions (axes, 1, length) to half-width cosines and sines (1, length, rotary / 2)."""

    def __init__(self, rotary: nn.Module, interleaved: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.rotary, self.interleaved, self.dtype = rotary, interleaved, dtype

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tables: M-RoPE gives each angle twice side by side, plain rotary all of them twice."""
        like = torch.zeros(1, dtype=torch.float32)
        positions = position_ids if self.interleaved else position_ids[0]
        cos, sin = self.rotary(like, positions)
        return self._narrow(cos), self._narrow(sin)

    def _narrow(self, x: Tensor) -> Tensor:
        half = x[..., ::2] if self.interleaved else x[..., : x.shape[-1] // 2]
        return half.to(self.dtype)


class DecoderTable(nn.Module):
    """Cosines and sines of every position up to the context: (context, rotary / 2), constants of the graph."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: nn.Module, decoder: Decoder, context: int, dtype: torch.dtype) -> None:
        super().__init__()
        cos, sin = rotary(torch.zeros(1), torch.arange(context)[None])
        half = decoder.rotary_dim // 2
        self.register_buffer("cos", cos[0, :, :half].to(dtype).contiguous())
        self.register_buffer("sin", sin[0, :, :half].to(dtype).contiguous())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the two tables."""
        return self.cos, self.sin


class DecoderBlock(nn.Module):
    """A decoder block with its key/value state as inputs and outputs."""

    def __init__(self, layer: nn.Module, hook: Hook) -> None:
        super().__init__()
        self.layer, self.hook = layer, hook

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        mask_or_lengths: Tensor,
        total: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (1, length, hidden) and the present keys and values."""
        state = (past_key, past_value, mask_or_lengths) + (() if total is None else (total,))
        with self.hook(cos, sin, *state) as step:
            output = self.layer(hidden, position_embeddings=(cos, sin), attention_mask=None)
        assert step.present is not None
        return output, *step.present


class DecoderBack(nn.Module):
    """The last tokens' logits: (1, length, hidden) to (1, last, vocabulary); of one token, unless it is asked."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, hidden: Tensor, logits_to_keep: Tensor | None = None) -> Tensor:
        """Return the logits: only the last tokens go through norm and head."""
        last = hidden[:, -1:] if logits_to_keep is None else _last(hidden, logits_to_keep)
        logits: Tensor = self.head(self.norm(last))
        return logits


def _last(hidden: Tensor, count: Tensor) -> Tensor:
    """Return hidden[:, -count:] by one operator, which the exporter makes of no slice whose size is a value."""
    shape: tuple[Any, ...] = (1, count.item(), hidden.shape[2])
    end, axis = torch.full((1,), END), torch.ones(1, dtype=torch.int64)
    return torch.onnx.ops.symbolic("Slice", (hidden, -count, end, axis), dtype=hidden.dtype, shape=shape)


def front_part(rotary: Any, decoder: Decoder, context: int, dtype: torch.dtype, *, inside: bool) -> Part:
    """Return what gives the angles; `inside` is whether attention itself rotates, by a table of all positions."""
    # A type whose angles depend on the prompt's length is only exported up to where they do not.
    rotary.rope_type = "default"
    outputs = ("rotary_cos", "rotary_sin")
    if inside:
        return Part(DecoderTable(rotary, decoder, context, dtype), {}, outputs, {})
    positions = torch.arange(LENGTH).expand(3 if decoder.mrope_section else 1, 1, -1)
    front = DecoderFront(rotary, bool(decoder.mrope_section), dtype)
    return Part(front, {"position_ids": positions}, outputs, {"position_ids": {2: "sequence"}})


def block_part(
    layer: nn.Module, hook: Hook, decoder: Decoder, dtype: torch.dtype, *, table: int | None, fused: bool
) -> Part:
    """Return a block.

    Args:
        layer: transformers'.
        hook: Of the dialect.
        decoder: Its description.
        dtype: Of its activations.
        table: The positions of the table by which attention itself rotates, if it does.
        fused: Whether attention is one operator on a buffer of keys and values, else a mask hides tokens.
    """
    angles = (1, LENGTH) if table is None else (table,)
    state = (1, decoder.kv_heads, PAST, decoder.head_dim)
    inputs = {
        "hidden": torch.zeros(1, LENGTH, decoder.hidden, dtype=dtype),
        "rotary_cos": torch.zeros(*angles, decoder.rotary_dim // 2, dtype=dtype),
        "rotary_sin": torch.zeros(*angles, decoder.rotary_dim // 2, dtype=dtype),
        "past_key": torch.zeros(state, dtype=dtype),
        "past_value": torch.zeros(state, dtype=dtype),
    }
    buffer = "capacity" if fused else "past"
    axes = {"hidden": {1: "sequence"}, "past_key": {2: buffer}, "past_value": {2: buffer}}
    if table is None:
        axes |= {"rotary_cos": {1: "sequence"}, "rotary_sin": {1: "sequence"}}
    if fused:
        one = torch.zeros(1, dtype=torch.int32)
        inputs |= {"seqlens_k": one, "total_length": one.clone()}
    else:
        inputs["mask"] = torch.zeros(1, 1, LENGTH, PAST + LENGTH, dtype=dtype)
        axes["mask"] = {2: "sequence", 3: "total"}
    return Part(DecoderBlock(layer, hook), inputs, ("hidden", "present_key", "present_value"), axes)


def back_part(back: DecoderBack, decoder: Decoder, dtype: torch.dtype, *, asked: bool) -> Part:
    """Return the last norm and the head; `asked` is whether an input says how many tokens' logits are wanted."""
    inputs = {"hidden": torch.zeros(1, LENGTH, decoder.hidden, dtype=dtype)}
    axes = {"hidden": {1: "sequence"}}
    if asked:
        inputs["logits_to_keep"] = torch.ones(1, dtype=torch.int64)
        axes["logits"] = {1: "last"}
    return Part(back, inputs, ("logits",), axes)
