"""Memory and operations of a run of a graph: its values, from the one that makes each to the last that takes it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from edgeglm.export.foreign.normalize.operand_types import bodies
from edgeglm.export.graph.fix.static_shapes import StaticShapes
from edgeglm.export.graph.passes.infer_types import InferTypes

RECURRENT = {"LSTM", "GRU", "RNN"}
# Values of so many bytes may stay in memory together, however few live at once.
LEAST_ROOM = 64 << 20
MULTIPLY = {"Conv", "ConvTranspose", "MatMul", "Gemm", *RECURRENT}


def run_bytes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the most bytes of values that live at once, as far as shape inference knows them.

    Args:
        model: A graph, whose shapes are fixed in place.
        shapes: Of its inputs.
    """
    StaticShapes({name: tuple(shape) for name, shape in shapes.items()})(model)
    InferTypes()(model)
    return _peak(model.graph)


def kept_groups(model: ir.Model, names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Return values in groups that runs may keep to their end: each takes at most what lives at once anyway.

    Args:
        model: A graph, whose shapes are fixed in place.
        names: Of its values, in the order of computation.
        shapes: Of its inputs.
    """
    room = max(run_bytes(model, shapes), LEAST_ROOM)
    sizes = {f"{value.name}": value_bytes(value) for node in model.graph for value in node.outputs}
    groups: list[list[str]] = []
    taken = 0
    for name in names:
        taken += sizes.get(name, 0)
        if not groups or taken > room:
            groups.append([])
            taken = sizes.get(name, 0)
        groups[-1].append(name)
    return groups


def observed_bytes(model: ir.Model, names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the most bytes of values that live at once in runs that keep values by `kept_groups`."""
    groups = kept_groups(model, names, shapes)
    return max((_peak(model.graph, frozenset(group)) for group in groups), default=0)


def operations(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return what each node of the main graph computes, by its name: products, or numbers where it multiplies none.

    Args:
        model: A graph, whose shapes are fixed in place.
        shapes: Of its inputs.
    """
    StaticShapes({name: tuple(shape) for name, shape in shapes.items()})(model)
    InferTypes()(model)
    return {f"{node.name}": _operations(node) for node in model.graph}


def _operations(node: ir.Node) -> int:
    taken, given = _elements(node.inputs[0] if node.inputs else None), sum(map(_elements, node.outputs))
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type not in MULTIPLY or weight is None or weight.shape is None or not len(weight.shape):
        return given
    if node.op_type in RECURRENT:
        inner = weight.shape[-1]
        return taken * _elements(weight) // max(inner if isinstance(inner, int) else 1, 1)
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    channels = weight.shape[0 if node.op_type in ("Conv", "ConvTranspose") or transposed else -1]
    if node.op_type == "MatMul":
        inner = weight.shape[-2] if len(weight.shape) > 1 else weight.shape[-1]
        return given * (inner if isinstance(inner, int) else 1)
    products = _elements(weight) // max(channels if isinstance(channels, int) else 1, 1)
    return (taken if node.op_type == "ConvTranspose" else given) * products


def _elements(value: ir.Value | None) -> int:
    if value is None or value.shape is None:
        return 0
    return math.prod(size if isinstance(size, int) else 1 for size in value.shape)


def _peak(graph: ir.Graph, kept: Collection[str] = ()) -> int:
    """Return the most bytes that live at once, where the outputs, or other values in their place, stay to the end."""
    nodes = list(graph)
    last = {value: index for index, node in enumerate(nodes) for value in node.inputs if value is not None}
    stay = [value for node in nodes for value in node.outputs if value.name in kept] or graph.outputs
    last |= dict.fromkeys(stay, len(nodes))
    live = peak = sum(map(value_bytes, graph.inputs))
    for index, node in enumerate(nodes):
        live += sum(map(value_bytes, node.outputs))
        inner = max((_peak(body) for attribute in node.attributes.values() for body in bodies(attribute)), default=0)
        peak = max(peak, live + inner)
        ended = {value for value in (*node.inputs, *node.outputs) if value is not None and last.get(value, -1) <= index}
        live -= sum(value_bytes(value) for value in ended if not value.is_initializer())
    return peak


def value_bytes(value: ir.Value) -> int:
    """Return the bytes of a value of known shape, 0 of another."""
    if value.dtype is None or value.shape is None or not isinstance(value.type, ir.TensorType):
        return 0
    if value.dtype == ir.DataType.STRING:  # whose bytes nothing tells
        return 0
    sizes = [size for size in value.shape if isinstance(size, int)]
    return math.ceil(math.prod(sizes) * value.dtype.itemsize) if len(sizes) == len(value.shape) else 0
