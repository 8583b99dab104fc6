"""Weights, and nodes before another, of a graph that is being quantized."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.foreign.measure.means import Means, shift_of
from edgeglm.export.foreign.quantize.codes import Codes, encode
from edgeglm.export.quantize.lowering import block_attributes
from edgeglm.export.quantize.schemes import Int4
from edgeglm.export.quantize.storage import encode as encode_rows

Array = NDArray[Any]
INT4 = Int4()
CONTRIB = "com.microsoft"
# Which sum over gates: their weights are of (directions, gates, inputs).
RECURRENT = {"GRU", "RNN", "LSTM"}
# Whose third input is added to what they multiply.
BIASED = {"Conv", "Gemm"}
# Types of what weights become.
CODES = {ir.DataType.INT8, ir.DataType.UINT8}


def float_array(value: ir.Value | None) -> Array | None:
    """Return the float32 weights of a value, None if it has none."""
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if constant is None or constant.dtype != ir.DataType.FLOAT else constant.numpy()


def constant(node: ir.Node, name: str, array: Array) -> ir.Value:
    """Return a new initializer of the node's graph."""
    assert node.graph is not None
    graph = node.graph
    name = f"{node.name}.{name}"
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)  # type: ignore[union-attr]
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{name} has no place in a function")
    graph.register_initializer(value)
    return value


def before(
    node: ir.Node, operator: str, inputs: list[ir.Value | None], name: str, domain: str = "", **attributes: int
) -> ir.Value:
    """Put a node before another, and return its output."""
    made = ir.node(operator, inputs, attributes, domain=domain, name=f"{node.name}.{name}")
    made.outputs[0].name = f"{node.name}.{name}.out"
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made.outputs[0]


def describe(value: ir.Value, like: ir.Value) -> None:
    """Give a value the type and the shape of another."""
    value.shape = like.shape
    if like.dtype is not None:
        value.dtype = like.dtype


def weight_axis(node: ir.Node, array: Array) -> int:
    """Return the axis of a weight's output channels."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type in ("MatMul",):
        return array.ndim - 1
    return 1 if node.op_type in (*RECURRENT, "ConvTranspose") else 0


def replace(node: ir.Node, value: ir.Value) -> None:
    """Let a value take the place of a node's output, with its name where that is the graph's."""
    (old, *_) = node.outputs
    describe(value, old)
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    value.name, old.name = old.name, f"{old.name}.before"
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def lost_of(node: ir.Node, weight: Array, codes: Codes) -> Array:
    """Return the weights less the rounded ones, those of a product as (inputs, outputs)."""
    lost: Array = weight - codes.codes * codes.scale
    return lost.T if transposed(node) else lost


def store(node: ir.Node, means: Means | None = None) -> None:
    """Store the weights in INT8; the engine widens them once, when it loads them.

    Args:
        node: A node.
        means: Of what it takes: a bias makes up for what the weights lose.
    """
    for index in (1, 2) if node.op_type in RECURRENT else (1,):
        array = float_array(node.inputs[index])
        if array is None or array.size < 2:
            continue
        axis = weight_axis(node, array)
        codes = encode(array, axis if array.ndim < 3 or axis != 1 else (0, 1))
        if (
            node.op_type in BIASED
            and (bias := float_array(node.inputs[2]) if len(node.inputs) > 2 else None) is not None
        ):
            shift = shift_of(lost_of(node, array, codes), means, node.attributes.get_int("group", 1))
            node.replace_input_with(2, constant(node, "bias", (bias + shift).astype(np.float32)))
        whole = before(
            node, "Cast", [constant(node, f"codes{index}", codes.codes)], f"cast{index}", to=ir.DataType.FLOAT
        )
        scale = constant(node, f"scale{index}", codes.scale)
        node.replace_input_with(index, before(node, "Mul", [whole, scale], f"weights{index}"))


def store_table(node: ir.Node) -> None:
    """Store a table in INT8 with a scale a row, and multiply the rows that are read."""
    array = float_array(node.inputs[0])
    assert array is not None
    codes = encode(array, 0)
    rows = before(node, "Gather", [constant(node, "codes", codes.codes), node.inputs[1]], "rows")
    scales = before(node, "Gather", [constant(node, "scale", codes.scale), node.inputs[1]], "scales")
    whole = before(node, "Cast", [rows], "cast", to=ir.DataType.FLOAT)
    replace(node, before(node, "Mul", [whole, scales], "product"))


def transposed(node: ir.Node) -> bool:
    """Tell whether a product takes its weights as [outputs, inputs]."""
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0


def put_blocks(node: ir.Node) -> None:
    """Put a product whose weights are in blocks of INT4 in a node's place."""
    weight = float_array(node.inputs[1])
    assert weight is not None
    rows = weight if transposed(node) else np.ascontiguousarray(weight.T)
    codes, scales = encode_rows(INT4, "ort", rows)
    inputs = [node.inputs[0], constant(node, "codes", codes), constant(node, "scales", scales)]
    attributes = block_attributes(INT4, *rows.shape)
    _with_bias(node, before(node, "MatMulNBits", inputs, "product", CONTRIB, **attributes))


def _with_bias(node: ir.Node, product: ir.Value) -> None:
    """Put a product, and the sum of a Gemm, in a node's place."""
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        product = before(node, "Add", [product, node.inputs[2]], "sum")
    replace(node, product)


def share_equal(model: ir.Model) -> None:
    """Let rounded weights that are equal be one: nodes that share a weight have each made codes of it.

    Those of an LSTM stay: without VNNI, ONNX Runtime's exact kernels replace each of them, and fail on the second time.
    """
    for graph in [model.graph, *model.graph.subgraphs()]:
        kept: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.dtype not in CODES or value.is_graph_input() or value.is_graph_output():
                continue
            if any(use.node.op_type == "DynamicQuantizeLSTM" for use in value.uses()):
                continue
            key = (tensor.dtype, tensor.numpy().shape, blake2b(tensor.tobytes()).digest())
            if (first := kept.setdefault(key, value)) is not value:
                value.replace_all_uses_with(first)
                del graph.initializers[name]


def drop_unused(model: ir.Model) -> None:
    """Drop weights that nothing takes any more from bodies too, which `RemoveUnusedNodesPass` leaves."""
    for graph in [model.graph, *model.graph.subgraphs()]:
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
