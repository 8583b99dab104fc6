"""The tracing worker, which answers a list of `TraceRequest` with the files of each.

It builds one block of each kind on the meta device from transformers' own classes, traces it with hooks for the
dialect, and returns ``{kind}.{front,block,back}.onnx``, ``model.json`` and ``answers.npz`` of each request: nothing is
written to a disk, which could be full. It is a process of its own because importing torch and transformers costs
several hundred megabytes that must be gone before weights stream.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

# Only transformers' losses need it, and importing it takes a tenth of our start; a process that has it keeps it.
sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]

import msgspec
import onnx_ir
import torch
from torch import nn

from edgeglm.engines import DIALECTS
from edgeglm.export.families.building import build_config
from edgeglm.export.families.registry import FAMILIES
from edgeglm.export.families.tower import Part, Tower
from edgeglm.export.model import Model
from edgeglm.export.trace.collect import collect_once
from edgeglm.export.trace.decoder_parts import DecoderBack, back_part, block_part, front_part
from edgeglm.export.trace.dialects import (
    ATTENTION,
    ROTARY_STYLES,
    Attention,
    OrtAttention,
    PortableAttention,
    Step,
    hooked,
)
from edgeglm.export.trace.placeholders import Linear, insert_placeholders
from edgeglm.export.trace.trace_request import ANSWERS, PARTS, TraceRequest
from edgeglm.export.trace.unhooked import unhooked
from edgeglm.roles import DECODER, ModuleName
from edgeglm.worker import serve

if sys.modules["scipy"] is None:
    del sys.modules["scipy"]

collect_once()


class Tracer:
    """Traces the parts of one model for one request."""

    def __init__(self, request: TraceRequest) -> None:
        self.request, self.kind = request, DIALECTS[request.dialect]
        self.config: Any = build_config(json.loads(request.config))
        self.family = FAMILIES[self.config.architectures[0]]
        self.modeling: Any = importlib.import_module(self.family.modeling)
        self.model: Model = self.family.describe(self.config, request.grid)
        self.text: Any = self.config.get_text_config()
        self.dtype = torch.float16 if request.half else torch.float32

    def run(self) -> dict[str, bytes]:
        """Return every trace of the model, and what the model is made of, by file name."""
        traces = {DECODER: self._decoder()} | {name: self._encoder(name) for name in self.model.encoders}
        files = {
            f"{module}.{part}.onnx": bytes(onnx_ir.to_proto(trace).SerializeToString())
            for module, parts in traces.items()
            for part, trace in zip(PARTS, parts, strict=True)
        }
        return {"model.json": msgspec.json.encode(self.model), **files}

    def answers(self) -> bytes:
        """Return what transformers makes of random inputs, for the proof of the traces."""
        return unhooked(self.request.config).answers(self.model, self.request.context)

    def _decoder(self) -> list[onnx_ir.Model]:
        decoder, dtype, cached = self.model.decoder, self.dtype, self.kind.contrib
        rotary = getattr(self.modeling, self.family.decoder.rotary)(config=self.text)
        front = self._export(front_part(rotary, decoder, dtype))
        self.text._attn_implementation = ATTENTION
        layer = self._layer()
        insert_placeholders(layer)
        if self.kind.is_plain and ROTARY_STYLES[decoder.style].is_interleaved:
            self._split_rotary(layer)
        hook = partial(hooked, self.modeling, self._attention)
        block = self._export(block_part(layer, hook, decoder, dtype, cached=cached))
        with torch.device("meta"):
            head = nn.Linear(decoder.hidden, decoder.vocabulary, bias=False)
        back = DecoderBack(self._layer().input_layernorm, head)  # type: ignore[arg-type]
        insert_placeholders(back)
        return [front, block, self._export(back_part(back, decoder, dtype, asked=cached))]

    def _layer(self) -> nn.Module:
        with torch.device("meta"):
            layer: nn.Module = getattr(self.modeling, self.family.decoder.block)(self.text, 0)
        return layer

    def _split_rotary(self, layer: nn.Module) -> None:
        decoder = self.model.decoder
        for name, module in layer.named_modules():
            if isinstance(module, Linear) and name.endswith(("q_proj", "k_proj")):
                module.split_rotary, module.head_dim = decoder.rotary_dim, decoder.head_dim

    def _attention(self, step: Step) -> Attention:
        if self.kind.contrib:
            return OrtAttention(step, self.model.decoder.style)
        return PortableAttention(step)

    def _encoder(self, name: ModuleName) -> list[onnx_ir.Model]:
        spec = next(spec for spec in self.family.encoders if spec.name == name)
        module: Tower = importlib.import_module(spec.tower)
        tower, block = module.build(self.config, ATTENTION)
        insert_placeholders(block)
        insert_placeholders(tower)
        hook = partial(hooked, self.modeling, self._attention, rotary=False)
        parts = module.parts(tower, block, self.model.encoders[name], name, self.dtype, hook)
        return [self._export(part) for part in parts]

    def _export(self, part: Part) -> onnx_ir.Model:
        inputs, axes = part.inputs, part.axes
        dynamic = tuple({axis: _dimension(name) for axis, name in axes.get(key, {}).items()} for key in inputs)
        with torch.no_grad():
            program = torch.onnx.export(
                part.module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=self.kind.opset,
                dynamic_shapes=dynamic if inputs else None,
                input_names=list(inputs),
                output_names=[f"{name}_out" if name in inputs else name for name in part.outputs],
                verbose=False,
            )
        assert program is not None
        for key, value in zip(inputs, program.model.graph.inputs, strict=True):
            for axis, name in axes.get(key, {}).items():
                assert value.shape is not None
                value.shape[axis] = name
        for key, value in zip(part.outputs, program.model.graph.outputs, strict=True):
            for axis, name in axes.get(key, {}).items() if key not in inputs else ():
                assert value.shape is not None
                _rename_axis(program.model.graph, str(value.shape[axis]), name)
        return program.model


def _dimension(name: str) -> Any:
    # The sum of two named dimensions cannot be said; the exporter finds it by itself, and names it by a number.
    return torch.export.Dim.DYNAMIC if name == "total" else torch.export.Dim(name)


def _rename_axis(graph: onnx_ir.Graph, old: str, new: str) -> None:
    """Give an axis that the exporter has named by itself a name in every shape that has it."""
    for shape in (value.shape for node in graph for value in node.outputs):
        for axis, size in enumerate(shape or ()):
            if shape is not None and str(size) == old:
                shape[axis] = new


def trace_all(requests: Sequence[TraceRequest]) -> list[dict[str, bytes]]:
    """Return the files of each request; transformers answers before anything is traced, when most memory is free."""
    tracers = [Tracer(request) for request in requests]
    answers = [tracer.answers() for tracer in tracers]
    unhooked.cache_clear()
    gc.collect()
    return [{ANSWERS: answer, **tracer.run()} for tracer, answer in zip(tracers, answers, strict=True)]


def main() -> int:
    """Trace what is requested."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # which wait for one another longer than they compute
    return serve(list[TraceRequest], lambda requests, show: trace_all(requests))
