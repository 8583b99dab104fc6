"""Modules whole and with their weights, as the converter to TFLite takes them: torch modules of static shapes.

Blocks are transformers' own, with the portable dialect's attention on a key/value buffer of the context's length.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice
from torch import Tensor, nn

from edgeglm.export.families.building import build_config
from edgeglm.export.families.image_tower import VisionBack, VisionBlock, VisionFront, tower_of
from edgeglm.export.families.registry import FAMILIES, image_config
from edgeglm.export.model import Decoder, Grid, Model, Rows, rotary_order
from edgeglm.export.targets.litert.convert_task import Span
from edgeglm.export.trace.decoder_parts import DecoderBack, DecoderBlock, DecoderFront
from edgeglm.export.trace.dialects import ATTENTION, ROTARY_STYLES, PortableAttention, hooked

# What hides a later token: the softmax gives it exactly 0 beside any score that attention has.
HIDDEN = -1e4


class BufferAttention(PortableAttention):
    """Attention over (key, value, mask, start): buffers in which the new tokens are written from `start`."""

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, *_: object, **settings: Any) -> tuple[Tensor, None]:
        """Return the attention of (batch, heads, length, head) over the whole buffers."""
        if not self.step.state:
            return self.attend_all(q, k, v, None, settings["scaling"])
        key, value, mask, start = self.step.state
        zero = torch.zeros((), dtype=torch.int32)
        where = [zero, zero, start[0], zero]
        k, v = dynamic_update_slice(key, k, where), dynamic_update_slice(value, v, where)
        self.step.present = (k, v)
        return self.attend_all(q, k, v, mask, settings["scaling"])


class PatchLinear(nn.Linear):
    """A convolution whose kernel is its stride, on one patch each: (n, channels, …) to (n, rows)."""

    def forward(self, x: Tensor) -> Tensor:
        """Project (n, channels, *kernel) to (n, rows)."""
        return super().forward(x.flatten(1))


class SquaredNorm(nn.LayerNorm):
    """A LayerNorm whose variance is a mean of products: squared differences have no form in 16 bits for the NPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of `x`."""
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + self.eps)
        return scaled * self.weight + self.bias


class DecoderSpan(nn.Module):
    """Blocks of a decoder one after the other, with the head behind the last where `back` is given.

    Keys and values are (1, kv_heads, context, head_dim), ``key_0`` and so on, counted in the whole decoder.
    """

    def __init__(self, front: DecoderFront, blocks: dict[int, DecoderBlock], back: DecoderBack | None) -> None:
        super().__init__()
        self.front, self.back, self.layers = front, back, list(blocks)
        self.blocks = nn.ModuleList(blocks.values())

    def forward(
        self, hidden: Tensor, position_ids: Tensor, start: Tensor, last: Tensor | None = None, **state: Tensor
    ) -> dict[str, Tensor]:
        """Return the logits of the token at `last` (default: the last one) or hidden states, and the new state.

        Args:
            hidden: (1, length, hidden).
            position_ids: (axes, 1, length), int32.
            start: [1], int32: how many tokens the state holds.
            last: [1], int32: the last of `hidden` that is no padding.
            **state: The keys and values of the blocks.
        """
        cos, sin = self.front(position_ids.long())
        length = hidden.shape[1]
        mask = self._mask(start, length, next(iter(state.values())).shape[2]) if state else hidden
        present: dict[str, Tensor] = {}
        for layer, block in zip(self.layers, self.blocks, strict=True):
            key, value = f"key_{layer}", f"value_{layer}"
            hidden, present[key], present[value] = block(hidden, cos, sin, state[key], state[value], mask, start)
        if self.back is None:
            return {"hidden": hidden} | present
        if last is not None:
            hidden = hidden.index_select(1, last)
        return {"logits": self.back(hidden)} | present

    @staticmethod
    def _mask(start: Tensor, length: int, context: int) -> Tensor:
        rows = start + torch.arange(length, dtype=torch.int32)
        seen = torch.arange(context, dtype=torch.int32)[None] <= rows[:, None]
        return torch.where(seen, 0.0, HIDDEN)[None, None]


class VisionSpan(nn.Module):
    """Blocks of a vision tower for one grid, behind `front` and before `back` where they are given."""

    cos: Tensor
    sin: Tensor
    position: Tensor

    def __init__(
        self, front: VisionFront, blocks: list[VisionBlock], back: VisionBack | None, position: Tensor | None
    ) -> None:
        super().__init__()
        self.front, self.blocks, self.back = front if position is not None else None, nn.ModuleList(blocks), back
        self.register_buffer("cos", front.cos)
        self.register_buffer("sin", front.sin)
        self.register_buffer("position", position)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Map ``pixel_values`` (count, values) to ``features`` (count / merge**2, output) or inner ``hidden``."""
        (hidden,) = inputs.values()
        if self.front is not None:
            hidden, _, _ = self.front(hidden, self.position)
        for block in self.blocks:
            hidden = block(hidden, self.cos, self.sin)
        return {"hidden": hidden} if self.back is None else {"features": self.back(hidden)}


class Builder:
    """Builds the modules of a checkpoint; one at a time is in memory."""

    def __init__(self, config: Mapping[str, Any], grid: Grid | None, source: Rows) -> None:
        self.config: Any = build_config(config)
        self.family = FAMILIES[self.config.architectures[0]]
        self.modeling: Any = importlib.import_module(self.family.modeling)
        self.model: Model = self.family.describe(self.config, grid)
        self.text: Any = self.config.get_text_config()
        self.text._attn_implementation = ATTENTION
        self.source = source

    def decoder(self, piece: Span) -> DecoderSpan:
        """Return some of the decoder's blocks; the head too, where it is in the piece."""
        decoder = self.model.decoder
        rotary = getattr(self.modeling, self.family.decoder.rotary)(config=self.text)
        rotary.rope_type = "default"  # as in `child.Tracer`
        front = DecoderFront(rotary, bool(decoder.mrope_section), torch.float32)
        blocks = {layer: DecoderBlock(self._layer(layer), self._hook()) for layer in piece.layers}
        return DecoderSpan(front, blocks, self._back() if piece.back else None).eval()

    def decoder_inputs(self, piece: Span, length: int, context: int) -> dict[str, Tensor]:
        """Return the inputs of `decoder` with the shapes of a step of `length` tokens; one token has no ``last``."""
        decoder = self.model.decoder
        inputs = {
            "hidden": torch.zeros(1, length, decoder.hidden),
            "position_ids": torch.zeros(3 if decoder.mrope_section else 1, 1, length, dtype=torch.int32),
            "start": torch.zeros(1, dtype=torch.int32),
        }
        if piece.back and length > 1:
            inputs["last"] = torch.zeros(1, dtype=torch.int32)
        for layer in piece.layers:
            for name in ("key", "value"):
                inputs[f"{name}_{layer}"] = torch.zeros(1, decoder.kv_heads, context, decoder.head_dim)
        return inputs

    def vision(self, piece: Span, position: Tensor) -> VisionSpan:
        """Return a piece of the vision tower; its patch embedding has the grid's position embedding."""
        vision, config = self.model.vision, image_config(self.config)
        assert vision is not None
        tower = tower_of(config, ATTENTION)
        blocks = [tower.blocks[layer] for layer in piece.layers]
        del tower.blocks, tower.embeddings
        _flatten_convolutions(tower)
        _square_norms(tower)
        for name, child in tower.named_children():
            if piece.back if vision.prefix + name in vision.back else piece.front:
                self._fill(child, f"{vision.prefix}{name}.")
        for layer, block in zip(piece.layers, blocks, strict=True):
            self._fill(block, vision.blocks.format(layer=layer))
        count = vision.grid[0] * vision.grid[1]
        stack = [VisionBlock(block, self._hook(rotary=False), count) for block in blocks]
        front, back = VisionFront(tower, vision.grid, torch.float32), VisionBack(tower)
        return VisionSpan(front, stack, back if piece.back else None, position if piece.front else None).eval()

    def vision_inputs(self, piece: Span) -> dict[str, Tensor]:
        """Return the inputs of `vision` with its shapes."""
        vision = self.model.vision
        assert vision is not None
        count, values = vision.grid[0] * vision.grid[1], vision.channels * vision.temporal_patch * vision.patch**2
        if piece.front:
            return {"pixel_values": torch.zeros(count, values)}
        return {"hidden": torch.zeros(count, vision.hidden)}

    def _hook(self, *, rotary: bool = True) -> Any:
        return partial(hooked, self.modeling, BufferAttention, rotary=rotary)

    def _layer(self, layer: int) -> nn.Module:
        with torch.device("meta"):
            block: nn.Module = getattr(self.modeling, self.family.decoder.block)(self.text, layer)
        self._fill(block, self.model.decoder.blocks.format(layer=layer))
        for name, module in block.named_modules():
            if ROTARY_STYLES[self.model.decoder.style].is_interleaved and name.endswith(("q_proj", "k_proj")):
                _split_rotary(module, self.model.decoder)
        return block

    def _back(self) -> DecoderBack:
        decoder = self.model.decoder
        with torch.device("meta"):
            norm = getattr(self.modeling, self.family.decoder.block)(self.text, 0).input_layernorm
            back = DecoderBack(norm, nn.Linear(decoder.hidden, decoder.vocabulary, bias=False))
        self._set(back.norm, "weight", decoder.norm)
        self._set(back.head, "weight", decoder.head)
        return back

    def _fill(self, module: nn.Module, prefix: str) -> None:
        for name, parameter in list(module.named_parameters()):
            owner, _, last = name.rpartition(".")
            if parameter.is_meta:
                self._set(module.get_submodule(owner), last, f"{prefix}{name}")

    def _set(self, module: nn.Module, name: str, weight: str) -> None:
        shape = getattr(module, name).shape
        rows = torch.from_numpy(self.source.rows(weight)).reshape(shape)
        setattr(module, name, nn.Parameter(rows, requires_grad=False))


def _flatten_convolutions(tower: nn.Module) -> None:
    """Put a linear layer in the place of each convolution on single patches."""
    for name, module in list(tower.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            owner, _, last = name.rpartition(".")
            with torch.device("meta"):
                linear = PatchLinear(module.weight[0].numel(), module.weight.shape[0], module.bias is not None)
            setattr(tower.get_submodule(owner), last, linear)


def _square_norms(tower: nn.Module) -> None:
    """Put a `SquaredNorm` in the place of each LayerNorm."""
    for name, module in list(tower.named_modules()):
        if isinstance(module, nn.LayerNorm):
            owner, _, last = name.rpartition(".")
            with torch.device("meta"):
                norm = SquaredNorm(module.normalized_shape, module.eps)
            setattr(tower.get_submodule(owner), last, norm)


def _split_rotary(projection: nn.Module, decoder: Decoder) -> None:
    """Put the even channels of each head before the odd ones, as the attention rotates them."""
    order = torch.from_numpy(rotary_order(decoder.rotary_dim, decoder.head_dim))
    for parameter in projection.parameters():
        heads = parameter.data.reshape(-1, decoder.head_dim, *parameter.shape[1:])
        parameter.data = heads[:, order].reshape(parameter.shape).contiguous()
