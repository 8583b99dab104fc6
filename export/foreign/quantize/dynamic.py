"""Products and LSTMs of integers, whose inputs are rounded in the ranges of each run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.foreign.measure.means import Means, shift_of
from edgeglm.export.foreign.quantize.codes import encode
from edgeglm.export.foreign.quantize.new_nodes import (
    CONTRIB,
    before,
    constant,
    describe,
    float_array,
    replace,
    transposed,
)

# From a signed byte to the unsigned one of the same weight.
SIGN = 128
Array = NDArray[Any]


def put_dynamic(node: ir.Node, *, pairs: bool, unsigned: bool = False, means: Means | None = None) -> None:
    """Put a product of integers, and the bias that is added behind it, in a node's place.

    Args:
        node: A product.
        pairs: Whether neighbouring weights must not saturate.
        unsigned: Whether weights are unsigned instead, whose kernels do not saturate and are slower for many rows.
        means: Of what it takes: the bias makes up for what the weights lose.
    """
    weight = float_array(node.inputs[1])
    assert weight is not None
    if transposed(node):
        weight = weight.T
    codes = encode(weight, 1, pairs_along=0 if pairs and not unsigned else None, even=True)
    stored = (codes.codes.astype(np.int16) + SIGN).astype(np.uint8) if unsigned else codes.codes
    sum_, bias = _bias(node, weight.shape[1])
    if bias is not None:
        bias = (bias + shift_of(weight - codes.codes * codes.scale, means)).astype(np.float32)
    inputs = [
        node.inputs[0],
        constant(node, "codes", stored),
        constant(node, "scale", codes.scale.reshape(-1)),
        constant(node, "zero", np.array(SIGN, np.uint8)) if unsigned else None,
        None if bias is None else constant(node, "bias", bias),
    ]
    product = before(node, "DynamicQuantizeMatMul", inputs, "product", CONTRIB)
    if sum_ is not node:
        node.outputs[0].replace_all_uses_with(product)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    elif bias is None and node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        product = before(node, "Add", [product, node.inputs[2]], "sum")
    replace(sum_, product)


def _bias(node: ir.Node, channels: int) -> tuple[ir.Node, Array | None]:
    """Return a constant that is added to a product, a number a channel, and the node whose output is the sum."""
    if node.op_type == "Gemm":
        array = float_array(node.inputs[2]) if len(node.inputs) > 2 else None
        return node, _row(array, channels, 2)
    takers = list(node.outputs[0].uses())
    if len(takers) != 1 or node.outputs[0].is_graph_output():
        return node, None
    taker = takers[0].node
    if taker.op_type != "Add" or taker.domain not in ("", "ai.onnx") or taker.graph is not node.graph:
        return node, None
    bias = _row(float_array(taker.inputs[1 - takers[0].idx]), channels, 1)
    return (node, None) if bias is None else (taker, bias)


def _row(array: Array | None, channels: int, axes: int) -> Array | None:
    if array is None or array.size != channels or array.shape[-1:] != (channels,) or array.ndim > axes:
        return None
    return array.reshape(-1)


def put_dynamic_lstm(node: ir.Node, *, pairs: bool) -> None:
    """Put an LSTM of integers in a node's place."""
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    scales: list[ir.Value | None] = []
    for index, name in ((1, "W"), (2, "R")):
        array = float_array(node.inputs[index])
        assert array is not None
        array = array.transpose(0, 2, 1)
        codes = encode(array, (0, 2), pairs_along=1 if pairs else None, even=True)
        inputs[index] = constant(node, f"{name}.codes", codes.codes)
        scales += [
            constant(node, f"{name}.scale", codes.scale.reshape(array.shape[0], -1)),
            constant(node, f"{name}.zero", np.zeros((array.shape[0], array.shape[2]), np.int8)),
        ]
    attributes = [attribute for name, attribute in node.attributes.items() if name != "layout"]  # is 0, the one it has
    made = ir.Node(CONTRIB, "DynamicQuantizeLSTM", [*inputs, *scales], attributes,
                   num_outputs=len(node.outputs), name=f"{node.name}.lstm")  # fmt: skip
    assert node.graph is not None
    node.graph.insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.name, old.name = old.name, f"{old.name}.before"
        describe(new, old)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
