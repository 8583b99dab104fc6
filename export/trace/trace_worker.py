"""The tracing worker, which answers a list of `TraceRequest` with the files of each.

It builds one block of each kind on the meta device from transformers' own classes, traces it with hooks for the
dialect, and returns ``{kind}.{front,block,back}.onnx``, ``model.json`` and ``answers.npz`` of each request: nothing is
written to a disk, which could be full. It is a process of its own because importing torch and transformers costs
several hundred megabytes that must be gone before weights stream.
"""

from __future__ import annotations

import gc
import importlib
import logging
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import msgspec
import onnx_ir
import torch
from torch import Tensor, nn

from edgeglm.engines import DIALECTS
from edgeglm.export.families import FAMILIES
from edgeglm.export.families.building import build_config
from edgeglm.export.model import Model
from edgeglm.export.trace.dialects import ATTENTION, Attention, OrtAttention, PortableAttention, Step, hooked
from edgeglm.export.trace.placeholders import Linear, insert_placeholders
from edgeglm.export.trace.trace_request import ANSWERS, TraceRequest
from edgeglm.export.trace.unhooked import unhooked
from edgeglm.worker import serve

# Sizes of the example inputs; none equal, so that no two dynamic axes are taken for one.
LENGTH, PAST = 5, 11


class Tracer:
    """Traces the parts of one model for one request."""

    def __init__(self, request: TraceRequest) -> None:
        self.request, self.kind = request, DIALECTS[request.dialect]
        self.config: Any = build_config(msgspec.json.decode(request.config))
        self.family = importlib.import_module(f"edgeglm.export.families.{FAMILIES[self.config.architectures[0]]}")
        self.modeling: Any = importlib.import_module(self.family.MODELING)
        self.model: Model = self.family.describe(self.config, request.grid)
        self.text: Any = self.config.get_text_config()
        self.dtype = torch.float16 if request.half else torch.float32

    def run(self) -> dict[str, bytes]:
        """Return every trace of the model, and what the model is made of, by file name."""
        traces = {f"decoder.{part}.onnx": trace for part, trace in self._decoder().items()}
        if self.model.vision:
            traces |= {f"vision.{part}.onnx": trace for part, trace in self._vision().items()}
        files = {name: bytes(onnx_ir.to_proto(trace).SerializeToString()) for name, trace in traces.items()}
        return {"model.json": msgspec.json.encode(self.model), **files}

    def answers(self) -> bytes:
        """Return what transformers makes of random inputs, for the proof of the traces."""
        tower = getattr(self.family, "VISION", None)
        original = unhooked(self.request.config)
        return original.answers(self.model, self.request.context, counted=self._rotary_inside, tower=tower)

    # -- decoder ---------------------------------------------------------------------

    def _decoder(self) -> dict[str, onnx_ir.Model]:
        return {"front": self._decoder_front(), "block": self._decoder_block(), "back": self._decoder_back()}

    @property
    def _rotary_inside(self) -> bool:
        # GroupQueryAttention counts positions itself, and takes tables whose width is a multiple of 8 alone.
        decoder = self.model.decoder
        return self.kind.contrib and not decoder.mrope_section and decoder.rotary_dim % 16 == 0

    def _decoder_front(self) -> onnx_ir.Model:
        rotary = getattr(self.modeling, self.family.ROTARY)(config=self.text)
        # A type whose angles depend on the prompt's length is only exported up to where they do not.
        rotary.rope_type = "default"
        if self._rotary_inside:
            table = DecoderTable(rotary, self.model, self.request.context, self.dtype)
            return self._export(table, {}, ["rotary_cos", "rotary_sin"], {})
        axes = 3 if self.model.decoder.mrope_section else 1
        positions = torch.arange(LENGTH).expand(axes, 1, -1)
        front = DecoderFront(rotary, bool(self.model.decoder.mrope_section), self.dtype)
        axes_names = {"position_ids": {2: "sequence"}}
        return self._export(front, {"position_ids": positions}, ["rotary_cos", "rotary_sin"], axes_names)

    def _decoder_block(self) -> onnx_ir.Model:
        self.text._attn_implementation = ATTENTION
        with torch.device("meta"):
            layer = getattr(self.modeling, self.family.DECODER_BLOCK)(self.text, 0)
        insert_placeholders(layer)
        if self.kind.is_plain:
            self._split_rotary(layer)
        inputs, axes = self._block_inputs()
        block = DecoderBlock(layer, self.modeling, self._attention)
        return self._export(block, inputs, ["hidden", "present_key", "present_value"], axes)

    def _split_rotary(self, layer: nn.Module) -> None:
        decoder = self.model.decoder
        for name, module in layer.named_modules():
            if isinstance(module, Linear) and name.endswith(("q_proj", "k_proj")):
                module.split_rotary, module.head_dim = decoder.rotary_dim, decoder.head_dim

    def _attention(self, step: Step) -> Attention:
        if self.kind.contrib:
            return OrtAttention(step, self._rotary_inside)
        return PortableAttention(step)

    def _block_inputs(self) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        decoder, dtype = self.model.decoder, self.dtype
        length, past = LENGTH, PAST
        inside = self._rotary_inside
        angles = (self.request.context,) if inside else (1, length)
        inputs = {
            "hidden": torch.zeros(1, length, decoder.hidden, dtype=dtype),
            "rotary_cos": torch.zeros(*angles, decoder.rotary_dim // 2, dtype=dtype),
            "rotary_sin": torch.zeros(*angles, decoder.rotary_dim // 2, dtype=dtype),
            "past_key": torch.zeros(1, decoder.kv_heads, past, decoder.head_dim, dtype=dtype),
            "past_value": torch.zeros(1, decoder.kv_heads, past, decoder.head_dim, dtype=dtype),
        }
        fused = self.kind.contrib
        buffer = "capacity" if fused else "past"
        axes = {"hidden": {1: "sequence"}, "past_key": {2: buffer}, "past_value": {2: buffer}}
        if not inside:
            axes |= {"rotary_cos": {1: "sequence"}, "rotary_sin": {1: "sequence"}}
        if fused:
            one = torch.zeros(1, dtype=torch.int32)
            return inputs | {"seqlens_k": one, "total_length": one.clone()}, axes
        mask = torch.zeros(1, 1, length, past + length, dtype=dtype)
        return inputs | {"mask": mask}, axes | {"mask": {2: "sequence", 3: "total"}}

    def _decoder_back(self) -> onnx_ir.Model:
        decoder = self.model.decoder
        with torch.device("meta"):
            layer = getattr(self.modeling, self.family.DECODER_BLOCK)(self.text, 0)
            back = DecoderBack(layer.input_layernorm, nn.Linear(decoder.hidden, decoder.vocabulary, bias=False))
        insert_placeholders(back)
        hidden = torch.zeros(1, LENGTH, decoder.hidden, dtype=self.dtype)
        return self._export(back, {"hidden": hidden}, ["logits"], {"hidden": {1: "sequence"}})

    # -- vision ------------------------------------------------------------------------

    def _vision(self) -> dict[str, onnx_ir.Model]:
        vision, config = self.model.vision, self.config.vision_config
        assert vision is not None
        config.depth = 1
        with torch.device("meta"):
            tower = getattr(self.modeling, self.family.VISION)(config)
        tower.config._attn_implementation = ATTENTION  # not before: the tower would look for a real implementation
        tower.rotary_pos_emb = type(tower.rotary_pos_emb)(config)
        first = tower.blocks[0]
        del tower.blocks
        insert_placeholders(first)
        insert_placeholders(tower)
        rows, columns = vision.grid
        count = rows * columns
        pixels = torch.zeros(count, vision.channels * vision.temporal_patch * vision.patch**2, dtype=self.dtype)
        hidden = torch.zeros(count, vision.hidden, dtype=self.dtype)
        front = VisionFront(tower, vision.grid, self.dtype)
        angle = torch.zeros(count, vision.hidden // vision.heads, dtype=self.dtype)
        block = VisionBlock(first, self.modeling, self._attention, count)
        back = VisionBack(tower)
        # Each a tensor of its own: the exporter would take one tensor in two places for one input.
        first_inputs = {"pixel_values": pixels, "position": hidden}
        block_inputs = {"hidden": hidden, "vision_cos": angle, "vision_sin": angle.clone()}
        return {
            "front": self._export(front, first_inputs, ["hidden", "vision_cos", "vision_sin"], {}),
            "block": self._export(block, block_inputs, ["hidden"], {}),
            "back": self._export(back, {"hidden": hidden}, ["features"], {}),
        }

    def _export(
        self, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict[str, dict[int, str]]
    ) -> onnx_ir.Model:
        dynamic = tuple({axis: _dimension(name) for axis, name in axes.get(key, {}).items()} for key in inputs)
        with torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=self.kind.opset,
                dynamic_shapes=dynamic if inputs else None,
                input_names=list(inputs),
                output_names=[f"{name}_out" if name in inputs else name for name in outputs],
                verbose=False,
            )
        assert program is not None
        for key, value in zip(inputs, program.model.graph.inputs, strict=True):
            for axis, name in axes.get(key, {}).items():
                assert value.shape is not None
                value.shape[axis] = name
        return program.model


def _dimension(name: str) -> Any:
    # The sum of two named dimensions cannot be said; the exporter finds it by itself, and names it by a number.
    return torch.export.Dim.DYNAMIC if name == "total" else torch.export.Dim(name)


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

    def __init__(self, rotary: nn.Module, model: Model, context: int, dtype: torch.dtype) -> None:
        super().__init__()
        cos, sin = rotary(torch.zeros(1), torch.arange(context)[None])
        half = model.decoder.rotary_dim // 2
        self.register_buffer("cos", cos[0, :, :half].to(dtype).contiguous())
        self.register_buffer("sin", sin[0, :, :half].to(dtype).contiguous())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the two tables."""
        return self.cos, self.sin


class DecoderBlock(nn.Module):
    """A decoder block with its key/value state as inputs and outputs."""

    def __init__(self, layer: nn.Module, modeling: ModuleType, attention: Callable[[Step], Attention]) -> None:
        super().__init__()
        self.layer, self.modeling, self.attention = layer, modeling, attention

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
        step = Step(cos, sin, *state)
        with hooked(self.modeling, self.attention(step)):
            output = self.layer(hidden, position_embeddings=(cos, sin), attention_mask=None)
        assert step.present is not None
        return output, *step.present


class DecoderBack(nn.Module):
    """The last token's logits: (1, length, hidden) to (1, 1, vocabulary)."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits: only the last token goes through norm and head."""
        logits: Tensor = self.head(self.norm(hidden[:, -1:]))
        return logits


class VisionFront(nn.Module):
    """Patches (count, channels * frames * patch * patch) and position embedding to the first hidden state."""

    cos: Tensor
    sin: Tensor

    def __init__(self, tower: Any, grid: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.embed, self.norm = tower.patch_embed, tower.post_conv_layernorm
        vision_utils = importlib.import_module("transformers.vision_utils")
        positions = vision_utils.get_vision_position_ids(torch.tensor([[1, *grid]]), tower.spatial_merge_size)
        cos, sin = tower.rotary_pos_emb(torch.zeros(1), positions)
        self.register_buffer("cos", cos.to(dtype))
        self.register_buffer("sin", sin.to(dtype))

    def forward(self, pixel_values: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hidden state (count, hidden), cosines and sines (count, head)."""
        return self.norm(self.embed.proj(pixel_values)) + position, self.cos, self.sin


class VisionBlock(nn.Module):
    """A vision block over one picture."""

    def __init__(
        self, block: nn.Module, modeling: ModuleType, attention: Callable[[Step], Attention], count: int
    ) -> None:
        super().__init__()
        self.block, self.modeling, self.attention, self.count = block, modeling, attention, count

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(count, hidden) to the same."""
        with hooked(self.modeling, self.attention(Step(cos, sin))):
            output: Tensor = self.block(hidden, cu_seqlens=None, max_seqlen=self.count, position_embeddings=(cos, sin))
        return output


class VisionBack(nn.Module):
    """Hidden state (count, hidden) to features (count / merge**2, output): last norm, merging convolution, MLP."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.norm, self.downsample, self.merger = tower.post_layernorm, tower.downsample, tower.merger
        self.merge = tower.spatial_merge_size

    def forward(self, hidden: Tensor) -> Tensor:
        """Merge as the end of `Glm4vVisionModel.forward`."""
        merged = self.norm(hidden).view(-1, self.merge, self.merge, hidden.shape[-1]).permute(0, 3, 1, 2)
        features: Tensor = self.merger(self.downsample(merged))
        return features


def trace_all(requests: Sequence[TraceRequest]) -> list[dict[str, bytes]]:
    """Return the files of each request; transformers answers before anything is traced, when most memory is free."""
    tracers = [Tracer(request) for request in requests]
    answers = [tracer.answers() for tracer in tracers]
    unhooked.cache_clear()
    gc.collect()
    return [{ANSWERS: found, **tracer.run()} for tracer, found in zip(tracers, answers, strict=True)]


def main() -> int:
    """Trace what is requested."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # which wait for one another longer than they compute
    return serve(list[TraceRequest], lambda requests, show: trace_all(requests))
