"""Products of a constant in other places than behind a value, as plain ones, which have forms of INT8.

``C @ X`` is the transpose of ``Xᵀ @ Cᵀ``, and of a vector that is all; an Einsum of a value and a constant is a product
between transposes, where each index is either summed, or of one of the two alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.foreign.quantize.new_nodes import before, constant, float_array, replace


def make_plain(model: ir.Model) -> None:
    """Write such products as plain ones, as far as their ranks are known."""
    for node in list(RecursiveGraphIterator(model.graph)):
        if node.domain == "" and node.op_type == "MatMul":
            _turn(node)
        elif node.domain == "" and node.op_type == "Einsum":
            _write_einsum(node)


def _turn(node: ir.Node) -> None:
    weight, value = float_array(node.inputs[0]), node.inputs[1]
    if weight is None or weight.ndim != 2 or value is None or value.shape is None or value.const_value is not None:
        return
    rank = len(value.shape)
    if rank == 1:  # which is a row or a column, as it must be
        product = before(node, "MatMul", [value, constant(node, "weights", weight.T)], "plain")
        _put(node, product, product)
        return
    swap = [*range(rank - 2), rank - 1, rank - 2]
    turned = _transposed(node, value, swap, "turned")
    product = before(node, "MatMul", [turned, constant(node, "weights", weight.T)], "plain")
    _put(node, product, _transposed(node, product, swap, "back"))


@dataclass(frozen=True)
class Equation:
    """The indices of an Einsum of a value and a constant.

    Args:
        value: Of the value.
        summed: Of both, which the result has not.
        own: Of the constant alone.
        result: Of the result.
    """

    value: str
    summed: str
    own: str
    result: str

    @property
    def kept(self) -> str:
        """The indices of the value alone."""
        return "".join(index for index in self.value if index not in self.summed)


def _equation(text: str, place: int) -> tuple[Equation, str] | None:
    """Return the equation and the constant's indices; None where it is no product of plain matrices."""
    taken, arrow, result = text.replace(" ", "").partition("->")
    terms = taken.split(",")
    if len(terms) != 2 or not arrow or "." in text or any(len({*term}) < len(term) for term in (*terms, result)):
        return None
    value, weight = terms[1 - place], terms[place]
    summed = "".join(index for index in weight if index in value)
    own = "".join(index for index in weight if index not in value)
    found = Equation(value, summed, own, result)
    plain = summed and own and found.kept and {*found.kept, *own} == {*result}
    return (found, weight) if plain else None


def _write_einsum(node: ir.Node) -> None:
    arrays = [float_array(value) for value in node.inputs]
    places = [index for index, array in enumerate(arrays) if array is not None]
    read = _equation(node.attributes.get_string("equation", ""), places[0]) if len(places) == 1 else None
    if read is None:
        return
    equation, indices = read
    weight, value = arrays[places[0]], node.inputs[1 - places[0]]
    assert weight is not None
    sizes = dict(zip(indices, weight.shape, strict=True))
    matrix = weight.transpose([indices.index(index) for index in equation.summed + equation.own])
    matrix = matrix.reshape(_product(equation.summed, sizes), -1)
    kept = equation.kept
    x = _ordered(node, value, equation.value, kept + equation.summed, "turned")
    if len(equation.summed) > 1:
        x = _reshaped(node, x, [*[0] * len(kept), matrix.shape[0]], "flat")
    plain = product = before(node, "MatMul", [x, constant(node, "weights", matrix)], "plain")
    if len(equation.own) > 1:
        product = _reshaped(node, product, [*[0] * len(kept), *(sizes[index] for index in equation.own)], "whole")
    _put(node, plain, _ordered(node, product, kept + equation.own, equation.result, "back"))


def _put(node: ir.Node, product: ir.Value, made: ir.Value) -> None:
    """Let a value take the place of a node's output, and the product that it is made of its name."""
    name, producer = node.name, product.producer()
    assert producer is not None
    replace(node, made)
    producer.name = name


def _product(indices: str, sizes: dict[str, int]) -> int:
    return int(np.prod([sizes[index] for index in indices]))


def _ordered(node: ir.Node, value: ir.Value | None, indices: str, wanted: str, name: str) -> ir.Value:
    assert value is not None
    order = [indices.index(index) for index in wanted]
    return value if order == list(range(len(order))) else _transposed(node, value, order, name)


def _transposed(node: ir.Node, value: ir.Value, order: Sequence[int], name: str) -> ir.Value:
    made = ir.node("Transpose", [value], {"perm": list(order)}, name=f"{node.name}.{name}")
    made.outputs[0].name = f"{node.name}.{name}.out"
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made.outputs[0]


def _reshaped(node: ir.Node, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
    return before(node, "Reshape", [value, constant(node, f"{name}.shape", np.array(shape, np.int64))], name)
