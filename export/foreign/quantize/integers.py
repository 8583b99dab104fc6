"""INT8 of a user's graph for ONNX Runtime on a CPU: every node in the form of its kind.

- Convolutions are static: quantize and dequantize nodes around them, in calibrated ranges.
- Matrix products are static, or dynamic: their inputs are quantized in the ranges of each run.
- INT4: products take their weights in blocks of 4 bits, all other weights are in INT8.
- LSTMs are dynamic. GRUs, RNNs, tables and what is kept wide store their weights in INT8 and compute in floating point.

Weights have a scale a channel. For x86 their neighbours in a product never add up to more than 128, so that kernels
which add pairs of products in 16 bits do not saturate. Or they are unsigned, whose kernels are as fast for few rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.foreign.measure.means import Means, shift_of
from edgeglm.export.foreign.quantize.codes import encode
from edgeglm.export.foreign.quantize.dynamic import put_dynamic, put_dynamic_lstm
from edgeglm.export.foreign.quantize.new_nodes import (
    CONTRIB,
    INT4,
    RECURRENT,
    before,
    constant,
    describe,
    drop_unused,
    float_array,
    lost_of,
    put_blocks,
    share_equal,
    store,
    store_table,
    transposed,
    weight_axis,
)

Array = NDArray[Any]
Range = tuple[float, float]
Products = Literal["static", "dynamic", "blocks"]
CONVOLUTIONS, PRODUCTS = {"Conv"}, {"MatMul", "Gemm"}
LEVELS = 255


@dataclass(frozen=True)
class Recipe:
    """A form of INT8 for each node of a graph.

    Args:
        products: The form of matrix products; `blocks` are of 4 bits.
        ranges: Of activations, by the name of the value.
        wide: Names of nodes that compute in floating point; their weights are in INT8 all the same.
        floating: Names of nodes that stay as they are.
        pairs: Whether neighbouring weights must not saturate on x86.
        unsigned: Names of products whose weights are unsigned where they must not, if they are dynamic.
        means: Of activations, by the name of the value: what weights lose by rounding is made up for in biases.
    """

    products: Products
    ranges: Mapping[str, Range]
    wide: Collection[str] = ()
    floating: Collection[str] = ()
    pairs: bool = True
    unsigned: Collection[str] = ()
    means: Mapping[str, Means] = field(default_factory=dict)

    def means_of(self, node: ir.Node) -> Means | None:
        """Return the means of what a node takes; of one that shares its weights none, as its bias stays shared too."""
        (x, weight) = node.inputs[:2]
        return None if weight is None or len(weight.uses()) > 1 else self.means.get(name_of(x))


def integer_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that can multiply integers, in the order of computation."""
    return [node for node in RecursiveGraphIterator(model.graph) if kind_of(node) in ("convolution", "product", "LSTM")]


def formed_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes whose weights can be in INT8, in the order of computation."""
    return [node for node in RecursiveGraphIterator(model.graph) if kind_of(node)]


def ranged_values(model: ir.Model) -> list[ir.Value]:
    """Return the values that nodes take, and what is behind convolutions: static ones take ranges of them."""
    values = []
    for node in formed_nodes(model):
        if node.graph is model.graph and kind_of(node) != "table":
            values.append(node.inputs[0])
            if node.op_type == "Conv":
                values.append(step_behind(node))
    return [value for value in dict.fromkeys(values) if value is not None and value.const_value is None]


def quantize(model: ir.Model, recipe: Recipe) -> ir.Model:
    """Return the graph in INT8; weights that are not float32, and nodes that have no form, stay as they are."""
    made = model.clone()
    for node in list(RecursiveGraphIterator(made.graph)):
        if node.name not in recipe.floating:
            _quantize_node(made, node, recipe)
    if any(node.domain == CONTRIB for node in RecursiveGraphIterator(made.graph)):
        made.graph.opset_imports.setdefault(CONTRIB, 1)
    RemoveUnusedNodesPass()(made)
    drop_unused(made)
    share_equal(made)
    TopologicalSortPass()(made)
    return made


def kind_of(node: ir.Node) -> str | None:
    """Return what form a node has: convolution, product, LSTM, stored, table; None for none."""
    if node.domain not in ("", "ai.onnx"):
        return None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "Gather":
        table = float_array(node.inputs[0])
        return "table" if table is not None and table.ndim == 2 and node.attributes.get_int("axis", 0) == 0 else None
    array = float_array(weight)
    if array is None or array.size < 2:
        return None
    if node.op_type in CONVOLUTIONS:
        return "convolution"
    if node.op_type in PRODUCTS and array.ndim == 2 and _is_plain(node):
        return "product"
    if node.op_type == "LSTM" and float_array(node.inputs[2]) is not None and not node.attributes.get_int("layout", 0):
        return "LSTM"
    return "stored" if node.op_type in (*CONVOLUTIONS, *PRODUCTS, *RECURRENT, "ConvTranspose") else None


def in_blocks(node: ir.Node) -> bool:
    """Tell whether a node is a product whose rows of weights fill a block of INT4."""
    weight = float_array(node.inputs[1]) if kind_of(node) == "product" else None
    return weight is not None and weight.shape[1 if transposed(node) else 0] >= INT4.block_size


def has_blocks(model: ir.Model) -> bool:
    """Tell whether INT4 has a form for any node."""
    return any(map(in_blocks, RecursiveGraphIterator(model.graph)))


def _is_plain(node: ir.Node) -> bool:
    """Tell whether a Gemm is a product and a sum."""
    attributes = node.attributes
    ones = all(attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return node.op_type == "MatMul" or (ones and not attributes.get_int("transA", 0))


def _quantize_node(model: ir.Model, node: ir.Node, recipe: Recipe) -> None:
    kind, wide = kind_of(node), node.name in recipe.wide
    inside = node.graph is not model.graph
    if kind == "table":
        store_table(node)
    elif kind == "stored" or (wide and kind):
        store(node, recipe.means_of(node))
    elif kind == "LSTM":
        put_dynamic_lstm(node, pairs=recipe.pairs)
    elif kind == "product" and recipe.products == "blocks":
        put_blocks(node)
    elif kind == "product" and (recipe.products == "dynamic" or inside):
        unsigned = recipe.pairs and node.name in recipe.unsigned
        put_dynamic(node, pairs=recipe.pairs, unsigned=unsigned, means=recipe.means_of(node))
    elif kind and not inside:
        _static(node, kind, recipe)
    elif kind:
        store(node)


# -- static ----------------------------------------------------------------------------


def _static(node: ir.Node, kind: str, recipe: Recipe) -> None:
    """Put quantize and dequantize nodes around a node, where its ranges are known; else store its weights."""
    x, weight = node.inputs[0], float_array(node.inputs[1])
    assert x is not None
    assert weight is not None
    name = name_of(x)
    if name not in recipe.ranges:
        store(node, recipe.means_of(node))
        return
    axis = weight_axis(node, weight)
    along = 0 if kind == "product" and axis == 1 else 1
    step, zero = step_of(recipe.ranges[name])
    bias = float_array(node.inputs[2]) if len(node.inputs) > 2 else None
    least = (
        None if bias is None or bias.ndim != 1 or bias.size != weight.shape[axis] else np.abs(bias) / (step * 2.0**30)
    )
    codes = encode(weight, axis, pairs_along=along if recipe.pairs else None, least=least, even=kind == "product")
    means = recipe.means_of(node)
    node.replace_input_with(0, _rounded(x, step, zero))
    scale = codes.scale.reshape(-1)
    node.replace_input_with(1, _dequantized(node, "weights", codes.codes, scale, axis))
    if least is not None and bias is not None:
        bias = bias + shift_of(lost_of(node, weight, codes), means, node.attributes.get_int("group", 1))
        steps = (scale * np.float32(step)).astype(np.float32)
        sums = np.clip(np.rint(bias / steps.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        node.replace_input_with(2, _dequantized(node, "bias", sums, steps, 0))
    if kind == "convolution":
        behind = step_behind(node)
        if f"{behind.name}" in recipe.ranges:
            _round_behind(behind, *step_of(recipe.ranges[f"{behind.name}"]))


SEEN = ".rounded"


def name_of(value: ir.Value | None) -> str:
    """Return the name of a value before it was rounded."""
    return f"{value.name}".removesuffix(SEEN) if value is not None else ""


def step_of(range_: Range) -> tuple[float, int]:
    """Return the step and the zero point of unsigned bytes over a range, which holds zero."""
    low, high = min(range_[0], 0.0), max(range_[1], 0.0)
    step = float(np.float32(max(high - low, 1e-20) / LEVELS))
    return step, round(min(max(-low / step, 0.0), LEVELS))


def step_behind(node: ir.Node) -> ir.Value:
    """Return the output of a convolution, or of the Relu or Clip that alone takes it."""
    output = node.outputs[0]
    takers = list(output.consumers())
    if len(takers) == 1 and not output.is_graph_output() and takers[0].op_type in ("Relu", "Clip"):
        return takers[0].outputs[0]
    return output


def _dequantized(node: ir.Node, name: str, codes: Array, scale: Array, axis: int) -> ir.Value:
    zero = np.zeros(scale.shape, codes.dtype)
    inputs = [
        constant(node, f"{name}.codes", codes),
        constant(node, f"{name}.scale", scale),
        constant(node, f"{name}.zero", zero),
    ]
    return before(node, "DequantizeLinear", list(inputs), name, axis=axis)


def _rounded(value: ir.Value, step: float, zero: int) -> ir.Value:
    """Return a value rounded to its steps: of one that is rounded already itself, else by nodes that all share."""
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear" and f"{value.name}".endswith(SEEN):
        return value
    for taker in value.consumers():
        if taker.op_type == "QuantizeLinear" and taker.name == f"{value.name}.quantize":
            return next(iter(taker.outputs[0].consumers())).outputs[0]
    (dequantize,) = _pair(value, step, zero)
    return dequantize.outputs[0]


def _round_behind(value: ir.Value, step: float, zero: int) -> None:
    """Round a value for all that take it."""
    takers = [(node, index) for node, index in value.uses()]
    if any(node.op_type == "QuantizeLinear" and node.name == f"{value.name}.quantize" for node, _ in takers):
        return
    (dequantize,) = _pair(value, step, zero)
    for node, index in takers:
        node.replace_input_with(index, dequantize.outputs[0])
    graph = dequantize.graph
    assert graph is not None
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = dequantize.outputs[0]
            name = value.name
            value.name = f"{name}.before"
            dequantize.outputs[0].name = name
            describe(dequantize.outputs[0], value)


def _pair(value: ir.Value, step: float, zero: int) -> Iterator[ir.Node]:
    """Put a quantize and a dequantize node behind a value, and give the second."""
    scale = ir.Value(name=f"{value.name}.step", const_value=ir.tensor(np.float32(step), name=f"{value.name}.step"))
    point = ir.Value(name=f"{value.name}.zero", const_value=ir.tensor(np.uint8(zero), name=f"{value.name}.zero"))
    producer = value.producer()
    graph = producer.graph if producer is not None else value.graph
    assert isinstance(graph, ir.Graph)
    for initializer in (scale, point):
        graph.register_initializer(initializer)
    quantize = ir.node("QuantizeLinear", [value, scale, point], name=f"{value.name}.quantize")
    quantize.outputs[0].name = f"{value.name}.quantized"
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, point], name=f"{value.name}.dequantize")
    dequantize.outputs[0].name = f"{value.name}{SEEN}"
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    yield dequantize
