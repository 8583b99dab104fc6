"""Memory of a run of a graph: its values, from the one that makes each to the last that takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgeglm.export.foreign.operand_types import bodies
from edgeglm.export.graph.fix.static_shapes import StaticShapes
from edgeglm.export.graph.passes.infer_types import InferTypes


def run_bytes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the most bytes of values that live at once, as far as shape inference knows them.

    Args:
        model: A graph, whose shapes are fixed in place.
        shapes: Of its inputs.
    """
    StaticShapes({name: tuple(shape) for name, shape in shapes.items()})(model)
    InferTypes()(model)
    return _peak(model.graph)


def _peak(graph: ir.Graph) -> int:
    nodes = list(graph)
    last = {value: index for index, node in enumerate(nodes) for value in node.inputs if value is not None}
    last |= dict.fromkeys(graph.outputs, len(nodes))
    live = peak = sum(map(_nbytes, graph.inputs))
    for index, node in enumerate(nodes):
        live += sum(map(_nbytes, node.outputs))
        inner = max((_peak(body) for attribute in node.attributes.values() for body in bodies(attribute)), default=0)
        peak = max(peak, live + inner)
        ended = {value for value in (*node.inputs, *node.outputs) if value is not None and last.get(value, -1) <= index}
        live -= sum(_nbytes(value) for value in ended if not value.is_initializer())
    return peak


def _nbytes(value: ir.Value) -> int:
    if value.dtype is None or value.shape is None or not isinstance(value.type, ir.TensorType):
        return 0
    sizes = [size for size in value.shape if isinstance(size, int)]
    return math.ceil(math.prod(sizes) * value.dtype.itemsize) if len(sizes) == len(value.shape) else 0
