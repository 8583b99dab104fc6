"""Shapes that vary become fixed, and operators of too many dimensions get fewer."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript")

import numpy as np
import onnx_ir as ir

from edgeglm.export.graph.fix.reduce_rank import ReduceRank
from edgeglm.export.graph.fix.static_shapes import StaticShapes
from tests.export.graph.fix.graphs import check_fix, graph, normal, operators, run

BY_SHAPE = """
g (float[batch, length, 4] x) => (float[batch, m, n] y) <int64[1] four = {4}, int64[1] begin = {0}, int64[1] two = {2}>
{
  shape = Shape (x)
  sizes = Slice (shape, begin, two)
  flat = Concat <axis = 0> (sizes, four)
  joined = Reshape (x, flat)
  y = Relu (joined)
}
"""


def test_what_was_computed_of_shapes_becomes_constant() -> None:
    model, x = graph(BY_SHAPE), normal(2, 3, 4)
    expected = run(model, x=x)
    assert StaticShapes({"x": (2, 3, 4)})(model).modified
    assert operators(model) in (["Relu"], ["Reshape", "Relu"])
    assert list(model.graph.inputs[0].shape or ()) == [2, 3, 4]
    assert list(model.graph.outputs[0].shape or ()) == [2, 3, 4]
    assert np.array_equal(run(model, x=x), expected)
    assert not StaticShapes({"x": (2, 3, 4)})(model).modified


@pytest.mark.parametrize("shapes", [{}, {"y": (2, 3, 4)}, {"x": (2, 3)}, {"x": (2, 3, 5)}])
def test_an_input_that_the_sizes_do_not_fit_stays(shapes: dict[str, tuple[int, ...]]) -> None:
    assert not StaticShapes(shapes)(graph(BY_SHAPE)).modified


WINDOWS = """
g (float[1, 8, 6, 5] x) => (float[1, 4, 3, 2, 2, 5] y) <int64[6] split = {1, 4, 2, 3, 2, 5}>
{
  windows = Reshape (x, split)
  y = Transpose <perm = [0, 1, 3, 2, 4, 5]> (windows)
}
"""


def test_a_transpose_whose_axes_move_in_groups() -> None:
    model = graph(WINDOWS)
    check_fix(ReduceRank(4), model, "Reshape Transpose", "Reshape Reshape Transpose Reshape", x=normal(1, 8, 6, 5))
    transpose = next(node for node in model.graph if node.op_type == "Transpose")
    assert list(transpose.attributes["perm"].as_ints()) == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("node", "after"),
    [
        ("Sigmoid (x)", "Reshape Sigmoid Reshape"),
        ("Add (x, x)", "Reshape Reshape Add Reshape"),
        ("Mul (x, two)", "Reshape Reshape Mul Reshape"),
        ("Softmax <axis = -1> (x)", "Reshape Softmax Reshape"),
        ("MatMul (x, x)", "Reshape Reshape MatMul Reshape"),
    ],
)
def test_other_operators_of_many_dimensions(node: str, after: str) -> None:
    head = "g (float[2, 1, 3, 2, 4, 4] x) => (float[2, 1, 3, 2, 4, 4] y) <float two = {2}>"
    model = graph(f"{head} {{ y = {node} }}")
    check_fix(ReduceRank(4), model, model.graph[0].op_type, after, x=normal(2, 1, 3, 2, 4, 4))


@pytest.mark.parametrize(
    ("node", "outputs"),
    [
        ("Transpose <perm = [5, 4, 3, 2, 1, 0]> (x)", "[4, 3, 2, 4, 3, 2]"),
        ("Softmax <axis = 1> (x)", "[2, 3, 4, 2, 3, 4]"),
        ("Add (x, c)", "[2, 3, 4, 2, 3, 4]"),
        ("MatMul (x, d)", "[2, 3, 4, 2, 3, 1]"),
    ],
)
def test_what_cannot_have_fewer_stays(node: str, outputs: str) -> None:
    constants = "<float[4] c = {1, 2, 3, 4}, float[4, 1] d = {1, 2, 3, 4}>"
    model = graph(f"g (float[2, 3, 4, 2, 3, 4] x) => (float{outputs} y) {constants} {{ y = {node} }}")
    assert not ReduceRank(4)(model).modified


def test_what_fits_stays() -> None:
    model = graph("g (float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) { y = Relu (x) }")
    assert not ReduceRank(4)(model).modified


def test_unknown_sizes_stay() -> None:
    model = graph("g (float[n, 3, 4, 5, 6] x) => (float[n, 3, 4, 5, 6] y) { y = Relu (x) }")
    assert isinstance(model.graph.inputs[0].shape, ir.Shape)
    assert not ReduceRank(4)(model).modified
