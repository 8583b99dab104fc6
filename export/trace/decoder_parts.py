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
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (1, length, hidden) and keys and values, the new ones or all, as the dialect has them.

        Args:
            hidden: Of the new tokens, (1, length, hidden).
            cos: Half-width cosines of their positions, as `DecoderFront` gives them.
            sin: The sines.
            key: Keys of the tokens before, in the dialect's layout.
            value: Their values.
            mask: What hides tokens, added to the scores.
            start: Where new rows go in a buffer that the graph itself writes, as TFLite's does.
        """
        state = (key, value, mask) if start is None else (key, value, mask, start)
        with self.hook(cos, sin, *state) as step:
            output = self.layer(hidden, position_embeddings=(cos, sin), attention_mask=None)
        assert step.present is not None
        key, value = step.present
        return output, key, value


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


def front_part(rotary: Any, decoder: Decoder, dtype: torch.dtype) -> Part:
    """Return what gives the angles of the step's positions."""
    # A type whose angles depend on the prompt's length is only exported up to where they do not.
    rotary.rope_type = "default"
    positions = torch.arange(LENGTH).expand(3 if decoder.mrope_section else 1, 1, -1)
    front = DecoderFront(rotary, bool(decoder.mrope_section), dtype)
    return Part(front, {"position_ids": positions}, ("rotary_cos", "rotary_sin"), {"position_ids": {2: "sequence"}})


def block_part(layer: nn.Module, hook: Hook, decoder: Decoder, dtype: torch.dtype, *, cached: bool) -> Part:
    """Return a block.

    Args:
        layer: transformers'.
        hook: Of the dialect.
        decoder: Its description.
        dtype: Of its activations.
        cached: Whether new keys and values are written behind the past ones by the engine, in a buffer that the runner
            has; else all of them are concatenated.
    """
    half = torch.zeros(1, LENGTH, decoder.rotary_dim // 2, dtype=dtype)
    inputs = {
        "hidden": torch.zeros(1, LENGTH, decoder.hidden, dtype=dtype),
        "rotary_cos": half,
        "rotary_sin": half.clone(),
    }
    axes = {name: {1: "sequence"} for name in inputs}
    if cached:
        cache = torch.zeros(PAST + LENGTH, decoder.kv_heads, decoder.head_dim, dtype=dtype)
        inputs |= {"cache_key": cache, "cache_value": cache.clone()}
        inputs["mask"] = torch.zeros(1, LENGTH, PAST + LENGTH, dtype=dtype)
        axes |= {"cache_key": {0: "filled"}, "cache_value": {0: "filled"}, "mask": {1: "sequence", 2: "filled"}}
        return Part(DecoderBlock(layer, hook), inputs, ("hidden", "new_key", "new_value"), axes)
    past = torch.zeros(1, decoder.kv_heads, PAST, decoder.head_dim, dtype=dtype)
    inputs |= {"past_key": past, "past_value": past.clone()}
    inputs["mask"] = torch.zeros(1, 1, LENGTH, PAST + LENGTH, dtype=dtype)
    axes |= {"past_key": {2: "past"}, "past_value": {2: "past"}, "mask": {2: "sequence", 3: "total"}}
    return Part(DecoderBlock(layer, hook), inputs, ("hidden", "present_key", "present_value"), axes)


def back_part(back: DecoderBack, decoder: Decoder, dtype: torch.dtype, *, asked: bool) -> Part:
    """Return the last norm and the head; `asked` is whether an input says how many tokens' logits are wanted."""
    inputs = {"hidden": torch.zeros(1, LENGTH, decoder.hidden, dtype=dtype)}
    axes = {"hidden": {1: "sequence"}}
    if asked:
        inputs["logits_to_keep"] = torch.ones(1, dtype=torch.int64)
        axes["logits"] = {1: "last"}
    return Part(back, inputs, ("logits",), axes)
