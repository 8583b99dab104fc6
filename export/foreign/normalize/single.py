"""A graph in fp16 or fp64 as one in fp32, from which integers are made; inputs and outputs keep their types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.foreign.normalize.identities import pass_identities

OTHERS = {ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}
# Attributes that name a type of a result, and those that hold a value of it.
TYPES, VALUE = ("to", "dtype"), "value"
INPUT, OUTPUT = ".as_input", ".as_output"


def is_other(model: ir.Model) -> bool:
    """Tell whether a weight is in fp16 or fp64."""
    return any(
        value.const_value is not None and value.const_value.dtype in OTHERS
        for graph in _graphs(model)
        for value in graph.initializers.values()
    )


def to_single(model: ir.Model) -> None:
    """Let a graph compute in fp32, in place."""
    types = [value.dtype for value in model.graph.outputs]
    for graph in _graphs(model):
        for value in graph.initializers.values():
            _widen_weight(value)
        for value in graph.inputs if graph is not model.graph else ():
            _widen(value)
        for node in graph:
            _widen_attributes(node)
            for value in node.outputs:
                _widen(value)
    _cast_inputs(model.graph)
    _cast_outputs(model.graph, types)
    for node in RecursiveGraphIterator(model.graph):
        if _is_idle(node):
            node.op_type = "Identity"
            node.attributes.clear()
    pass_identities(model)


def other_ends(model: ir.Model) -> list[str]:
    """Return the inputs and outputs that are in fp16 or fp64."""
    return [f"{value.name}" for value in (*model.graph.inputs, *model.graph.outputs) if value.dtype in OTHERS]


def _is_idle(node: ir.Node) -> bool:
    """Tell whether a node casts fp32 to fp32, as what was a cast to fp16 does now."""
    if (node.domain, node.op_type) != ("", "Cast") or node.inputs[0] is None:
        return False
    return node.inputs[0].dtype == ir.DataType.FLOAT and node.attributes.get_int("to", 0) == ir.DataType.FLOAT


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from (graph for graph in model.graph.subgraphs() if isinstance(graph, ir.Graph))


def _widen(value: ir.Value) -> None:
    if value.dtype in OTHERS:
        value.type = ir.TensorType(ir.DataType.FLOAT)  # another type, as a clone shares its own with the original


def _widen_weight(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype in OTHERS:
        value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    for name in TYPES:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int() in OTHERS:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    held = node.attributes.get(VALUE)
    if held is not None and held.type == ir.AttributeType.TENSOR and held.as_tensor().dtype in OTHERS:
        node.attributes[VALUE] = ir.AttrTensor(VALUE, ir.tensor(held.as_tensor().numpy().astype(np.float32)))


def _cast_inputs(graph: ir.Graph) -> None:
    for value in graph.inputs:
        takers = tuple(value.uses())
        if value.dtype not in OTHERS or not takers:
            continue
        made = _cast(value, ir.DataType.FLOAT, f"{value.name}{INPUT}", f"{value.name}{INPUT}")
        for node, index in takers:
            node.replace_input_with(index, made.outputs[0])
        graph.insert_before(graph[0], made)


def _cast_outputs(graph: ir.Graph, types: Sequence[ir.DataType | None]) -> None:
    """Give outputs in the types that they had, but for inputs, which still have theirs."""
    for index, (value, dtype) in enumerate(zip(graph.outputs, types, strict=True)):
        if dtype not in OTHERS or dtype is None or value.is_graph_input():
            continue
        name, value.name = f"{value.name}", f"{value.name}{OUTPUT}"
        made = _cast(value, dtype, name, f"{name}{OUTPUT}")
        graph.append(made)
        graph.outputs[index] = made.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str, node: str) -> ir.Node:
    made = ir.node("Cast", [value], {"to": int(dtype)}, name=node)
    made.outputs[0].name, made.outputs[0].dtype, made.outputs[0].shape = name, dtype, value.shape
    return made
