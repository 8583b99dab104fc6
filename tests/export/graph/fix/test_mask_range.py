"""Masks that static INT8 has a step for."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript")

import numpy as np
import onnx_ir as ir

from edgeglm.export.graph.fix.mask_range import HIDDEN, MaskRange
from tests.export.graph.fix.graphs import check_fix, graph, normal

ADDED = """
g (float[1, 2, 3] x) => (float[1, 2, 3] y) <float[1, 2, 3] mask = {0, -10000, -10000, 0, 0, -10000}>
{ s = Add (x, mask) y = Softmax <axis = -1> (s) }
"""
CHOSEN = """
g (float[1, 2, 3] x) => (float[1, 2, 3] y) <bool[1, 2, 3] seen = {1, 0, 0, 1, 1, 0}>
{ hidden = Constant <value_float = -3.4e38> () s = Where (seen, x, hidden) y = Softmax <axis = -1> (s) }
"""
SCALED = """
g (float[1, 2, 3] x) => (float[1, 2, 3] y)
  <float[1, 2, 3] padding = {0, 1, 1, 0, 0, 1}, float[1] much = {-10000}>
{ m = Mul (padding, much) s = Add (x, m) y = Softmax <axis = -1> (s) }
"""


@pytest.mark.parametrize(
    ("text", "nodes"), [(ADDED, "Add Softmax"), (CHOSEN, "Where Softmax"), (SCALED, "Mul Add Softmax")]
)
def test_a_mask_is_raised_and_hides_as_before(text: str, nodes: str) -> None:
    model = graph(text)
    check_fix(MaskRange(), model, nodes, nodes, x=normal(1, 2, 3))


def test_the_smallest_number_is_the_one_that_hides() -> None:
    model = graph(ADDED)
    MaskRange()(model)
    mask = model.graph.initializers["mask"].const_value
    assert mask is not None
    assert (mask.numpy().min(), mask.numpy().max()) == (HIDDEN, 0)


def test_minus_infinity_is_raised() -> None:
    model = graph(ADDED)
    endless = np.array([[[0, -np.inf, -np.inf], [0, 0, -np.inf]]], np.float32)
    model.graph.initializers["mask"].const_value = ir.tensor(endless, name="mask")
    check_fix(MaskRange(), model, "Add Softmax", "Add Softmax", x=normal(1, 2, 3))


@pytest.mark.parametrize(
    "text",
    [ADDED.replace("-10000", "-20"), ADDED.replace("Softmax <axis = -1> (s)", "Relu (s)")],
    ids=["small", "no softmax"],
)
def test_other_numbers_stay(text: str) -> None:
    assert not MaskRange()(graph(text)).modified
