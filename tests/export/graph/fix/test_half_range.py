"""Values that fp16 does not hold: the fixed graph is right in its arithmetic, and no node takes two types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from edgeglm.export.graph.fix.half_range import LIMIT, HalfRange
from edgeglm.export.prove.fp16_arithmetic import HalfGraph
from tests.export.graph.fix.graphs import operators

NORM = """
  wide = Cast<to = 1>({x})
  square = Mul(wide, wide)
  axes = Constant<value_ints = [-1]>()
  mean = ReduceMean<keepdims = 1>(square, axes)
  root = Sqrt(mean)
  unit = Div(wide, root)
  y = Cast<to = 10>(unit)"""
# As GLM-4-0414 has it: a norm behind the product.
SANDWICH = f"p = MatMul(a, w) {NORM.format(x='p')}"
# As GLM has it: the product goes into the residual, which another one takes away again.
RESIDUAL = """
  p = MatMul(a, w)
  r = Add(h, p)
  q = MatMul(b, w)
  s = Add(r, q)
  n = Identity(s)""" + NORM.format(x="n")
# A large value into a product, by way of a bias, changes of shape and a half of them.
THROUGH = """
  p = MatMul(a, w)
  q = Add(p, c)
  u, v = Split<axis = 1, num_outputs = 2>(q)
  m = Mul(u, v)
  t = Transpose<perm = [1, 0]>(m)
  z = MatMul(m, t)""" + NORM.format(x="z")


def graph(text: str) -> ir.Model:
    inputs = "float16[4, 8] a, float16[4, 8] b, float16[8, 16] w, float16[16] c, float16[4, 16] h"
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> graph ({inputs}) => (float16[n, m] y) {{ {text} }}'
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def feeds(size: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    found = {name: random.standard_normal(shape) for name, shape in {"a": (4, 8), "w": (8, 16), "c": (16,)}.items()}
    found["a"] = np.abs(found["a"]) * size
    found["b"], found["w"], found["h"] = -found["a"], np.abs(found["w"]) * 100, np.ones((4, 16))
    return {name: array.astype(np.float16) for name, array in found.items()}


def measured(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All values in fp64."""
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        if node.op_type == "Cast":
            node.attribute[0].i = onnx.TensorProto.DOUBLE
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    found = ReferenceEvaluator(proto).run(None, wide, intermediate=True)
    return {name: np.asarray(array) for name, array in found.items() if name}  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "size"), [(SANDWICH, 300), (RESIDUAL, 300), (THROUGH, 8)])
def test_the_result_is_right_where_it_was_infinite(text: str, size: float, tmp_path: Path) -> None:
    model, inputs = graph(text), feeds(size)
    right = measured(model, inputs)
    broken = HalfGraph(ir.to_proto(model), tmp_path).run(inputs)["y"]
    assert not np.isfinite(broken).all()
    assert HalfRange({name: float(np.abs(array).max()) for name, array in right.items()})(model).modified
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
    emulated = HalfGraph(proto, tmp_path).run(inputs)["y"]
    with np.errstate(over="raise"):
        reference = np.asarray(ReferenceEvaluator(proto).run(["y"], inputs)[0])  # type: ignore[index]
    scale = np.abs(right["y"]).max()
    for got in (emulated, reference):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float64), right["y"], rtol=0, atol=4e-3 * scale)


def test_products_stay_in_half_precision() -> None:
    """Behind a norm that takes fp32 anyway, all that is added are two factors and a cast."""
    model = graph(SANDWICH)
    before = operators(model)
    HalfRange({"p": 1e6})(model)
    assert operators(model) == ["Mul", *before[:1], "Cast", "Mul", *before[2:]]
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert {value.dtype for value in (*product.inputs, *product.outputs) if value} == {ir.DataType.FLOAT16}


def test_a_graph_whose_values_fit_is_left_alone() -> None:
    model = graph(RESIDUAL)
    before = ir.to_proto(model).SerializeToString()
    assert not HalfRange({"p": LIMIT, "r": LIMIT, "s": 1.0})(model).modified
    assert ir.to_proto(model).SerializeToString() == before


def test_outputs_and_a_concatenated_state_keep_their_types() -> None:
    """Keys and values go out in fp16, as the next step takes them in."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> graph (float16[2, 4] a, float16[4, 4] w, float16[3, 4] past)'
        " => (float16[5, 4] present, float16[2, 4] y)"
        " { p = MatMul(a, w) present = Concat<axis = 0>(past, p) y = Add(p, a) }"
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    HalfRange({"p": 30_000.0, "present": 30_000.0, "y": 30_000.0})(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [
        ("present", ir.DataType.FLOAT16), ("y", ir.DataType.FLOAT16)
    ]  # fmt: skip
