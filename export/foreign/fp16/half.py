"""A graph in fp16: every value that fp16 may carry, but for the inputs and outputs, which keep their types.

ONNX's schemas say which operands of an operator may be fp16. A node that stays in fp32, by its operator or because it
is asked for, takes fp32 values as they were computed, and what takes its results in fp16 finds them rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, TopologicalSortPass

from edgeglm.export.foreign.normalize.operand_types import Operands, bodies, complete_types, operands_of

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST, SMALLEST = float(np.finfo(np.float16).max), 2.0**-24
# Sum what fp16 overflows, tell apart what it rounds to the same number, or are steps of integers.
WIDE = set(
    "LayerNormalization RMSNormalization InstanceNormalization GroupNormalization SimplifiedLayerNormalization"
    " SkipLayerNormalization SkipSimplifiedLayerNormalization LpNormalization MeanVarianceNormalization"
    " Softmax LogSoftmax ReduceLogSumExp ReduceLogSum CumSum TopK NonMaxSuppression RoiAlign GridSample"
    " DFT STFT MelWeightMatrix QuantizeLinear DequantizeLinear DynamicQuantizeLinear Upsample"
    " RandomUniformLike RandomNormalLike Bernoulli EyeLike".split()
)
RECURRENT = {"RNN", "GRU", "LSTM"}
LENGTHS = 4  # the input of the recurrent operators
# Whole numbers as floats: fp16 counts to 2,048.
COUNTS = {ir.DataType.INT64, ir.DataType.INT32}
COUNTED = set(
    "Add Sub Mul Div Floor Ceil Round Neg Sin Cos MatMul Reshape Unsqueeze Squeeze Expand Concat Slice"
    " Transpose".split()
)
FEW = 1 << 16  # elements of a constant that is computed with counts


def to_half(model: ir.Model, wide: Collection[str] = (), *, native: bool = False) -> None:
    """Rewrite a graph in fp16, in place.

    Args:
        model: Without functions and constant nodes, its types inferred.
        wide: Names of nodes that stay in fp32.
        native: Whether the engine computes fp16 as it is, and not in fp32 what it has no kernel for.
    """
    complete_types(model.graph, model.graph.opset_imports)
    _Halving(model, frozenset(wide), native=native).whole()
    RemoveUnusedNodesPass()(model)
    for graph in _all_graphs(model.graph):
        unused = [name for name, value in graph.initializers.items() if not value.uses() and value not in graph.outputs]
        for name in unused:
            del graph.initializers[name]
    NameFixPass()(model)
    TopologicalSortPass()(model)


class _Halving:
    def __init__(self, model: ir.Model, wide: frozenset[str], *, native: bool) -> None:
        self.main, self.opsets, self.wide, self.native = model.graph, model.graph.opset_imports, wide, native
        self.singles = {value for graph in _all_graphs(model.graph) for value in _values(graph) if _is_single(value)}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.counted: set[ir.Value] = set()
        self.beyond: set[ir.Value] = set()  # counts that are computed with constants beyond fp16

    def whole(self) -> None:
        """Rewrite the main graph, whose outputs keep their names and types."""
        for node in list(self.main):
            self._node(node)
        for index, value in enumerate(self.main.outputs):
            if value in self.singles and value.dtype == HALF:
                single, name = self._as(value, FLOAT), value.name
                value.name, single.name = f"{name}.half", name
                self.main.outputs[index] = single

    def _body(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        """Rewrite the body of a node, with inputs and outputs of a type."""
        for value in graph.inputs:
            if value in self.singles:
                value.type = ir.TensorType(dtype)
        for node in list(graph):
            self._node(node)
        for index, value in enumerate(graph.outputs):
            if value in self.singles:
                graph.outputs[index] = self._as(value, dtype)

    def _node(self, node: ir.Node) -> None:
        operands = operands_of(node, self.opsets)
        if operands is None or not self._is_narrow(node):
            operands = None
        narrow = operands is not None
        for body in _bodies(node):
            self._body(body, HALF if narrow else FLOAT)
        halved = {
            index: operand.kind
            for index, value in enumerate(node.inputs)
            if value in self.singles and operands and (operand := operands.input(index)) and operand.may_be_half
        }
        for index, value in enumerate(node.inputs):
            if value in self.singles:
                node.replace_input_with(index, self._as(value, HALF if index in halved else FLOAT))
        if operands:
            self._retype_outputs(node, operands, set(halved.values()))

    def _retype_outputs(self, node: ir.Node, operands: Operands, kinds: Collection[str]) -> None:
        """Make outputs fp16 that must have the type of an input that is."""
        if node.op_type == "Cast" and node.outputs[0] in self.singles:
            node.attributes["to"] = ir.AttrInt64("to", int(HALF))
            node.outputs[0].type = ir.TensorType(HALF)
            return
        for index, value in enumerate(node.outputs):
            operand = operands.output(index)
            if value in self.singles and operand and (operand.kind in kinds or _bodies(node)):
                value.type = ir.TensorType(HALF)

    def _is_narrow(self, node: ir.Node) -> bool:
        if self._counts(node):
            return False
        if node.name in self.wide or (node.op_type in WIDE and (not node.domain or node.domain == "com.microsoft")):
            return False
        if node.op_type in RECURRENT and self.native and len(node.inputs) > LENGTHS and node.inputs[LENGTHS]:
            return False  # TensorRT does not select by lengths in it
        if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == HALF:
            return node.inputs[0] in self.singles  # what the graph itself widens stays wide
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.type is not None]
        return bool(_bodies(node)) or all(isinstance(value.type, ir.TensorType) for value in values)

    def _counts(self, node: ir.Node) -> bool:
        """Tell whether a node computes with whole numbers as floats, and note what it gives."""
        inputs = [value for value in node.inputs if value in self.singles]
        counted = [value for value in inputs if value in self.counted]
        if node.op_type == "Range" and inputs:
            counted = inputs
        elif node.op_type == "Cast":
            counted = [value for value in node.inputs if value is not None and value.dtype in COUNTS]
        elif node.op_type not in COUNTED or any(not _is_few(value) for value in inputs if value not in self.counted):
            return False
        if not counted or node.outputs[0] not in self.singles:
            return False
        self.counted.add(node.outputs[0])
        if any(value in self.beyond or _is_beyond(value) for value in inputs):
            self.beyond.add(node.outputs[0])
        return True

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value in a type: itself, a constant of its own, or a cast right behind what computes it."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.casts:
            made = _constant(value, dtype) if value.is_initializer() else self._cast(value, dtype)
            made.shape = value.shape
            self.casts[value, dtype] = made
        return self.casts[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}.{'half' if dtype == HALF else 'single'}"
        nodes, source = [], value
        if dtype == HALF and value in self.beyond:
            nodes += _clip(value)
            source = nodes[-1].outputs[0]
        made = ir.Value(name=name, type=ir.TensorType(dtype))
        nodes.append(ir.node("Cast", [source], {"to": int(dtype)}, outputs=[made], name=name))
        producer, graph = value.producer(), value.graph or self.main
        if producer is not None:
            assert producer.graph is not None
            producer.graph.insert_after(producer, nodes)
        elif len(graph):
            graph.insert_before(graph[0], nodes)
        else:
            graph.extend(nodes)
        return made


def _constant(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return another constant: nothing becomes infinite, and no single number zero."""
    assert value.const_value is not None
    assert value.graph is not None
    array = value.const_value.numpy()
    with np.errstate(all="ignore"):
        rounded = array.astype(dtype.numpy())
    if dtype == HALF:
        rounded = np.where(np.isfinite(array) & ~np.isfinite(rounded), np.sign(array) * LARGEST, rounded)
        if array.size == 1:
            rounded = np.where((array != 0) & (rounded == 0), np.sign(array) * SMALLEST, rounded)
    name = f"{value.name}.{'half' if dtype == HALF else 'single'}"
    tensor = ir.tensor(rounded.astype(dtype.numpy()), name=name)
    made = ir.Value(name=name, type=ir.TensorType(dtype), const_value=tensor)
    value.graph.register_initializer(made)
    return made


def _clip(value: ir.Value) -> list[ir.Node]:
    """Return a count within fp16, as a mask of -1e9 is: infinite, it would make a softmax NaN."""
    nodes = []
    for operator, bound in (("Min", LARGEST), ("Max", -LARGEST)):
        limit = ir.node("Constant", [], {"value": ir.tensor(np.array(bound, np.float32))})
        limit.outputs[0].type = ir.TensorType(FLOAT)
        nodes += [limit, ir.node(operator, [value, limit.outputs[0]])]
        value = nodes[-1].outputs[0]
        value.type = ir.TensorType(FLOAT)
    return nodes


def _is_single(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == FLOAT


def _is_few(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size <= FEW


def _is_beyond(value: ir.Value) -> bool:
    if value.const_value is None:
        return False
    array = np.abs(value.const_value.numpy())
    return bool((np.isfinite(array) & (array > LARGEST)).any())


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [graph for attribute in node.attributes.values() for graph in bodies(attribute)]


def _all_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for body in _bodies(node):
            yield from _all_graphs(body)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
