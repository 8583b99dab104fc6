"""A bundle's modules in half precision, measured in the arithmetic of the accelerator that they are for.

ONNX Runtime's CPU provider computes fp16 operators in fp32 and drops the roundings between them, so that nothing
overflows. Here each is a node in fp32 whose result is cast to fp16: casts that lose something, which the engine keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.errors import AccuracyError
from edgeglm.manifest import Module
from edgeglm.runtimes.core import sessions
from edgeglm.runtimes.core.session import DecoderSession, EncoderSession, Feeds
from edgeglm.runtimes.engines.ort import engine as ort

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
SUFFIX = ".single"
# Compute nothing that is rounded.
EXACT = set(
    "Cast CastLike Concat Constant ConstantOfShape Expand Flatten Gather Identity Reshape Shape Slice Split Squeeze"
    " Tile Transpose Unsqueeze".split()
)


def is_emulated(module: Module) -> bool:
    """Return whether a module is for an accelerator's half precision, and none is here to run it."""
    assert module.engine
    half = ENGINES[module.engine].half and any(value.dtype == "float16" for value in module.inputs)
    return half and not ENGINES[sessions.engine_of(module)].half


@dataclass(frozen=True)
class MeasuringSessions:
    """Opens the modules of a bundle that is measured: on their engine, or in its arithmetic where it is not here.

    Args:
        inputs: How many inputs each module gets: a simulator is too slow for many, and ONNX Runtime computes the same
            quantized graph.
    """

    inputs: int = 1

    def open_encoder(self, bundle: Bundle, module: Module, threads: int) -> EncoderSession:
        """Open a module without a state. Raises as its engine does."""
        if is_emulated(module):
            return _Encoder(bundle.path(module.file), threads, _rounded(bundle, module))
        return sessions.open_encoder(bundle, module, threads, self.inputs)

    def open_decoder(
        self, bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool = False
    ) -> DecoderSession:
        """Open a decoder. Raises as its engine does."""
        if is_emulated(module):
            return _Decoder(bundle.path(module.file), threads, capacity, _rounded(bundle, module))
        return sessions.open_decoder(bundle, module, threads, capacity, low_rss=low_rss)


class _Encoder(ort.Encoder):
    def run(self, feeds: Feeds) -> dict[str, NDArray[np.float32]]:
        found = super().run(feeds)
        for array in found.values():
            _check("vision", array)
        return found


class _Decoder(ort.Decoder):
    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        logits = super().step(hidden, position_ids, last)
        _check("decoder", logits)
        return logits


def _check(name: str, array: NDArray[np.float32]) -> None:
    if not np.isfinite(array).all():
        why = "computes NaN or infinity in fp16, which its GPU would answer with"
        raise AccuracyError(name, why, f"export the bundle with --precision {name}=fp32")


def _rounded(bundle: Bundle, module: Module) -> bytes:
    proto = onnx.load(bundle.path(module.file), load_external_data=False)
    return bytes(round_results(proto).SerializeToString())


def round_results(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every operator on fp16 in fp32, and its results cast to fp16, in bodies of nodes too."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(proto)
    inferred = onnx.shape_inference.infer_shapes(proto)
    _round_graph(rounded.graph, inferred.graph, {})
    return rounded


def _round_graph(graph: GraphProto, inferred: GraphProto, outer: Mapping[str, int], suffix: str = SUFFIX) -> None:
    """Round the results of a graph's operators in place.

    Args:
        graph: The graph, or a body.
        inferred: The same, with types.
        outer: The types of values around a body.
        suffix: Of the names of widened values, in bodies another one than around them.
    """
    types, single, nodes = {**outer, **_types(inferred)}, dict[str, str](), list[NodeProto]()
    takers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, set()).add(node.op_type)

    def widened(name: str) -> str:
        if types.get(name) != HALF:
            return name
        if name not in single:
            single[name] = f"{name}{suffix}"
            nodes.append(helper.make_node("Cast", [name], [single[name]], to=SINGLE))
        return single[name]

    for node, known in zip(graph.node, inferred.node, strict=True):
        bodies = list(zip(_bodies(node), _bodies(known), strict=True))
        for body, body_known in bodies:
            _round_graph(body, body_known, types, f"{suffix}{SUFFIX}")
        if bodies or node.op_type in EXACT or HALF not in {types.get(name) for name in (*node.input, *node.output)}:
            nodes.append(node)
            continue
        made = NodeProto()
        made.CopyFrom(node)
        made.input[:] = [widened(name) for name in node.input]
        if node.op_type == "DequantizeLinear" and takers.get(node.output[0]) == {"MatMul"}:
            # The engine multiplies by the codes, if nothing is in between.
            single[node.output[0]] = made.output[0] = f"{node.output[0]}{suffix}"
            nodes.append(made)
            continue
        made.output[:] = [f"{name}.exact" if types.get(name) == HALF else name for name in node.output]
        nodes.append(made)
        pairs = zip(made.output, node.output, strict=True)
        nodes += [helper.make_node("Cast", [exact], [name], to=HALF) for exact, name in pairs if exact != name]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(nodes)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _types(graph: GraphProto) -> Mapping[str, int]:
    """Return the element types of a graph's values."""
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
