"""Operators as ONNX defines them by others: the same numbers, in nodes named after them, and only those lacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")


from edgeglm.export.graph.fix.decompose_functions import OPSET, decompose_functions
from edgeglm.export.prove.onnx_run import opened
from tests.export.foreign.small_graphs import graph, node, normal, value

KNOWN = {*"Abs Add Div Elu Exp Less Mul Neg ReduceSum Relu Softplus Sqrt Sub Tanh Where".split()}
OPERATORS: dict[str, dict[str, Any]] = {
    "Mish": {}, "Selu": {}, "Selu of its own": {"alpha": 1.3, "gamma": 1.1}, "Softsign": {}, "Celu": {"alpha": 0.7},
    "Shrink": {"bias": 0.1, "lambd": 0.3}, "ReduceL1": {}, "ReduceL2": {}, "ReduceSumSquare": {},
}  # fmt: skip


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    outputs = opened(Path(), ir.to_proto(model).SerializeToString())({"x": x})
    return next(iter(outputs.values()))


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_becomes_its_definition(operator: str) -> None:
    last = node(operator.split(maxsplit=1)[0], ["r"], ["y"], name="last", **OPERATORS[operator])
    output = onnx.ValueInfoProto(name="y", type=onnx.TypeProto())
    model = ir.from_proto(
        graph([node("Sub", ["x", "one"], ["r"], name="first"), last], [value("x", [2, 8])], [output],
              {"one": np.float32(0.2)}, opset=OPSET)
    )  # fmt: skip
    made = decompose_functions(model.clone(), KNOWN)
    assert made
    assert {one.op_type for one in made.graph} <= KNOWN
    assert [one.name.split(".")[0] for one in made.graph if one.name] == ["first", *["last"] * (len(made.graph) - 1)]
    x = normal(2, 8)
    np.testing.assert_allclose(run(made, x), run(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", ["Relu", "NonZero"])
def test_what_is_known_or_has_no_definition_stays(operator: str) -> None:
    output = onnx.ValueInfoProto(name="y", type=onnx.TypeProto())
    model = graph([node(operator, ["x"], ["y"])], [value("x", [2, 8])], [output], opset=OPSET)
    assert decompose_functions(ir.from_proto(model), KNOWN) is None
