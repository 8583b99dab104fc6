"""An operator of more dimensions than the engine takes -> Reshape, the same with fewer, Reshape."""

from __future__ import annotations

import math

import onnx_ir as ir

UNARY = set(
    "Abs Cast Ceil Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Neg Not Reciprocal "
    "Relu Round Sigmoid Sign Sin Softplus Sqrt Tanh".split()
)
BINARY = set("Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Or Pow Sub".split())


class ReduceRank(ir.passes.InPlacePass):
    """Transposes whose axes move in groups, element by element operators, Softmax over the last axis, batched MatMul.

    Args:
        max_rank: What the engine takes. Sizes must be known; what stands alone with more dimensions stays.
    """

    def __init__(self, max_rank: int) -> None:
        super().__init__()
        self.max_rank = max_rank

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such operator that has too many dimensions."""
        modified = False
        for node in list(model.graph):
            shapes = [_shape(value) for value in (*node.inputs, *node.outputs) if value is not None]
            known = [shape for shape in shapes if shape is not None]
            if len(known) == len(shapes) and known and max(map(len, known)) > self.max_rank:
                modified |= self._rewrite(model.graph, node)
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, graph: ir.Graph, node: ir.Node) -> bool:
        if node.domain or len(node.outputs) != 1:
            return False
        tape = ir.tape.Tape()
        result = _reduced(tape, node, self.max_rank)
        if result is None:
            return False
        result = _reshape(tape, result, _known(node.outputs[0]))
        ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [result])
        return True


def _reduced(tape: ir.tape.Tape, node: ir.Node, max_rank: int) -> ir.Value | None:
    """Return the result in another shape."""
    if node.op_type == "Transpose":
        return _transpose(tape, node, max_rank)
    if node.op_type in UNARY | BINARY:
        return _elementwise(tape, node)
    if node.op_type == "Softmax":
        return _softmax(tape, node)
    if node.op_type == "MatMul":
        return _matmul(tape, node)
    return None


def _transpose(tape: ir.tape.Tape, node: ir.Node, max_rank: int) -> ir.Value | None:
    """Return the transposition with axes that stay side by side as one axis, and without those of size 1."""
    x = node.inputs[0]
    assert x is not None
    sizes = _known(x)
    order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(len(sizes)))[::-1]
    kept = [axis for axis in order if sizes[axis] != 1]
    position = {axis: index for index, axis in enumerate(sorted(kept))}
    groups: list[list[int]] = []
    for axis in (position[axis] for axis in kept):
        if groups and groups[-1][-1] + 1 == axis:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) > max_rank:
        return None
    large = [size for size in sizes if size != 1]
    ordered = sorted(groups)
    flat = _reshape(tape, x, [math.prod(large[axis] for axis in group) for group in ordered])
    return tape.op("Transpose", [flat], {"perm": [ordered.index(group) for group in groups]})


def _elementwise(tape: ir.tape.Tape, node: ir.Node) -> ir.Value | None:
    """Return all values of one size in one dimension; single numbers as they are. What broadcasts stays."""
    count = math.prod(_known(node.outputs[0]))
    values: list[ir.Value | None] = []
    for value in node.inputs:
        size = None if value is None else math.prod(_known(value))
        if size not in (None, 1, count):
            return None
        values.append(value if value is None else _reshape(tape, value, [size or 1]))
    return tape.op(node.op_type, values, dict(node.attributes))


def _softmax(tape: ir.tape.Tape, node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    assert x is not None
    sizes = _known(x)
    if node.attributes.get_int("axis", -1) not in (-1, len(sizes) - 1):
        return None
    return tape.op("Softmax", [_reshape(tape, x, [-1, sizes[-1]])], {"axis": -1})


def _matmul(tape: ir.tape.Tape, node: ir.Node) -> ir.Value | None:
    """Return one batch dimension, where both operands have the same ones."""
    a, b = node.inputs
    assert a is not None
    assert b is not None
    if _known(a)[:-2] != _known(b)[:-2]:
        return None
    return tape.op("MatMul", [_reshape(tape, value, [-1, *_known(value)[-2:]]) for value in (a, b)])


def _reshape(tape: ir.tape.Tape, value: ir.Value, sizes: list[int]) -> ir.Value:
    tensor = ir.tensor(sizes, dtype=ir.DataType.INT64)
    shape = tape.op("Constant", [], {"value": tensor})
    shape.const_value, shape.type = tensor, ir.TensorType(tensor.dtype)
    result = tape.op("Reshape", [value, shape])
    if -1 not in sizes:
        result.shape = ir.Shape(sizes)
    return result


def _shape(value: ir.Value) -> list[int] | None:
    """Return the sizes, if all of them are numbers."""
    if value.shape is None:
        return None
    sizes = [size for size in value.shape if isinstance(size, int)]
    return sizes if len(sizes) == len(value.shape) else None


def _known(value: ir.Value) -> list[int]:
    sizes = _shape(value)
    assert sizes is not None
    return sizes
