"""The check of a graph against an engine's operators and a device's limits, and the fixes that follow."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript")

import re

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from edgeglm.devices.loader import load_profile
from edgeglm.devices.operator_table import table_for
from edgeglm.engines import EngineName
from edgeglm.errors import UnsupportedError
from edgeglm.export.graph.check import check
from edgeglm.export.graph.conform import fit, to_opset
from tests.export.graph.fix.graphs import graph, normal, operators, run

ATTENTION = """
g (float[1, 2, {n}, 4] q, float[1, 2, {n}, 4] k, float[1, 2, {n}, 4] v) => (float[1, 2, {n}, 4] y)
{{
  t = Transpose <perm = [0, 1, 3, 2]> (k)
  s = MatMul (q, t)
  two = Constant <value_float = 2.0> ()
  d = Div (s, two)
  p = Softmax <axis = -1> (d)
  y = MatMul (p, v)
}}
"""


def violations(model: ir.Model, target: str, engine: EngineName) -> list[str]:
    """What the check finds on a shipped profile."""
    profile = load_profile(target)
    table = table_for(profile, engine)
    assert table is not None
    return [str(each) for each in check(model, table, profile.limits)]


def refused(model: ir.Model, target: str, engine: EngineName) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(UnsupportedError) as raised:
        fit(model, load_profile(target), engine, "model.onnx")
    return [str(raised.value), *map(str, raised.value.more)]


def test_what_an_engine_has_is_no_violation() -> None:
    model = graph(ATTENTION.format(n=3))
    for target, engine in (("cpu", "ort"), ("jetson", "tensorrt"), ("jetson-thor", "tensorrt"), ("qcs6490", "qnn")):
        assert violations(model, target, engine) == [], target  # type: ignore[arg-type]
    assert fit(model, load_profile("cpu"), "ort", "x")[0] is model


@pytest.mark.parametrize(
    ("text", "opset", "expected"),
    [
        ("(float[2] x) => (float[2] y) { y = Det (x) }", 20, r"y \(Det\): TensorRT 10.3 does not have the operator"),
        ("(uint8[2] x) => (uint8[2] y) { y = Relu (x) }", 20, "takes float32, .* and its input is uint8"),
        ("(float[1,1,1,1,1,1,1,1,2] x) => (float[1,1,1,1,1,1,1,1,2] y) { y = Relu (x) }", 20, "at most 8 dimensions"),
        ("(float[1,2,4,4] x) => (float[1,2,3,3] y) { y, i = MaxPool <kernel_shape=[2,2]> (x) }", 20, "first 1 outputs"),
        ("(float[2] x, int64[1] a) => (float[1,2] y) { y = Unsqueeze (x, a) }", 20, "its input 1 as a constant only"),
        ("(float[2] x) => (float[2] y) { y = Relu (x) }", 23, r"opset \(23\): TensorRT 10.3 reads opsets 9 to 21"),
        ("(float[2] x) => (float[2] y) { y = org.mine.Twirl (x) }", 20, r"y \(org.mine.Twirl\): .* does not have"),
    ],
)
def test_each_kind_of_violation_is_named(text: str, opset: int, expected: str) -> None:
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "org.mine" : 1]>'
    model = ir.from_proto(onnx.parser.parse_model(f"{header} g {text}"))
    found = violations(model, "jetson", "tensorrt")
    assert len(found) == 1
    assert re.search(expected, found[0]), found


def test_versions_that_an_engine_lacks_are_named() -> None:
    model = graph("g (float[2, 3] x) => (float[2, 3] y) { y = RMSNormalization (x, x) }", opset=23)
    assert violations(model, "cpu", "ort") == []
    profile = load_profile("cpu")
    table = table_for(profile, "ort")
    assert table is not None
    older = msgspec.structs.replace(table.operators["RMSNormalization"], versions=(1, 22))
    table = msgspec.structs.replace(table, operators={**table.operators, "RMSNormalization": older})
    (found,) = check(model, table)
    assert found.reason == "ONNX Runtime 1.31 has its versions 1 to 22, and opset 23 means 23"


def test_the_block_of_a_node_is_its_part_even_where_it_has_no_name() -> None:
    model = graph("g (float[2] x) => (float[2] y) { a = Det (x) b = Relu (a) y = Neg (b) }")
    for value, name in zip((node.outputs[0] for node in model.graph), ("", "layer.3.relu", "back.y"), strict=True):
        value.name = name or None
    model.graph[0].name = None
    (found,) = check(model, table_for(load_profile("jetson"), "tensorrt"))  # type: ignore[arg-type]
    assert (found.block, found.operator) == ("layer.3", "Det")


def test_attention_of_varying_length_is_refused_on_xavier_alone() -> None:
    model = graph(ATTENTION.format(n="n"), opset=17)
    (line,) = refused(model, "jetson-xavier", "tensorrt")
    assert "(Softmax): the length of its attention varies, which the device cannot (limits.dynamic_attention)" in line
    assert line.endswith("; export it with one fixed length, or give samples of one length by --calibration")
    sizes = dict.fromkeys("qkv", (1, 2, 5, 4))
    fixed, fixes = fit(model, load_profile("jetson-xavier"), "tensorrt", "x", sizes)
    assert [fix.fix for fix in fixes] == ["the sizes of the samples"]
    assert [list(value.shape or ()) for value in fixed.graph.inputs] == [[1, 2, 5, 4]] * 3
    assert fit(model, load_profile("jetson"), "tensorrt", "x")[1] == ()
    assert fit(graph(ATTENTION.format(n=3), opset=17), load_profile("jetson-xavier"), "tensorrt", "x")[1] == ()


def test_a_softmax_outside_attention_may_vary_on_xavier() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { y = Softmax <axis = -1> (x) }"
    assert fit(graph(text, opset=17), load_profile("jetson-xavier"), "tensorrt", "x")[1] == ()


LSTM = """
g (float[{n}, 2, 3] x{lengths}) => (float[{n}, 1, 2, 4] y)
  <float[1, 16, 3] w = {{{w}}}, float[1, 16, 4] r = {{{r}}}>
{{ y, h, c = LSTM <hidden_size = 4> (x, w, r{inputs}) }}
"""


def lstm(n: str = "5", *, lengths: bool = False) -> ir.Model:
    numbers = {"w": ", ".join(["0.1"] * 48), "r": ", ".join(["0.1"] * 64)}
    more = {"lengths": ", int32[2] l", "inputs": ", , l"} if lengths else {"lengths": "", "inputs": ""}
    text = LSTM.format(n=n, **numbers, **more)
    return graph(text, opset=17)


@pytest.mark.parametrize("model", [lstm("n"), lstm(lengths=True)], ids=["varying dimension", "lengths beside it"])
def test_a_variable_length_lstm_is_refused_on_qcs6490_alone(model: ir.Model) -> None:
    other, line = (line for line in refused(model, "qcs6490", "qnn") if "(LSTM)" in line)
    assert "(LSTM): QNN HTP v68 does not have the operator" in other
    assert "(LSTM): it takes sequences of different lengths, which the device cannot" in line
    # Samples of one length fix a dimension, and no lengths beside it.
    with pytest.raises(UnsupportedError, match="does not have the operator") as raised:
        fit(model, load_profile("qcs6490"), "qnn", "x", {"x": (5, 2, 3), "l": (2,)})
    assert bool(raised.value.more) == (len(model.graph.inputs) > 1)
    assert fit(model, load_profile("jetson"), "tensorrt", "x")[1] == ()


def test_an_lstm_of_fixed_length_is_refused_where_the_compiler_refuses_every_one() -> None:
    assert violations(lstm(), "qcs6490", "qnn") == ["y (LSTM): QNN HTP v68 does not have the operator"]
    assert violations(lstm(), "jetson", "tensorrt") == []


def test_dimensions_that_vary_are_fixed_to_the_samples_where_the_device_takes_none() -> None:
    text = "g (float[batch, 3] x) => (float[batch, 3] y) { y = Relu (x) }"
    (line,) = refused(graph(text), "qcs6490", "qnn")
    assert "x (input): it has dimensions that vary, batch, and the device takes static shapes only" in line
    model, fixes = fit(graph(text), load_profile("qcs6490"), "qnn", "x", {"x": (2, 3)})
    assert [each.fix for each in fixes] == ["the sizes of the samples"]
    assert list(model.graph.inputs[0].shape or ()) == [2, 3]


def test_what_cannot_be_fixed_is_a_line_for_each_node() -> None:
    lines = refused(graph("g (float[2, 2] x) => (float y, float z) { y = Det (x) z = Det (x) }"), "jetson", "tensorrt")
    assert len(lines) == 2
    assert all(line.startswith("model.onnx on jetson-orin: ") for line in lines)


ERF = """
g (float[2, 4] x) => (float[2, 4] y) <float root = {1.4142135}, float one = {1}, float half = {0.5}>
{ a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half) }
"""


def test_gelu_becomes_one_operator_on_qnn_even_from_an_older_opset() -> None:
    x = normal(2, 4)
    before = graph(ERF, opset=17)
    model, fixes = fit(before, load_profile("qcs6490"), "qnn", "x")
    assert operators(model) == ["Gelu"]
    assert [(each.operator, each.fix) for each in fixes] == [("Erf", "GELU as one operator")]
    np.testing.assert_allclose(run(model, x=x), run(before, x=x), atol=1e-5)
    assert operators(before)[1] == "Erf"  # what was given is as it was


def test_a_decomposed_norm_becomes_one_operator_on_qnn() -> None:
    text = """g (float[2, 3] x) => (float[2, 3] y) <float[3] w = {1, 2, 3}, int64[1] last = {-1}, float eps = {1e-5}>
    { s = Mul (x, x) m = ReduceMean (s, last) e = Add (m, eps) r = Sqrt (e) u = Div (x, r) y = Mul (w, u) }"""
    x = normal(2, 3)
    model, fixes = fit(graph(text), load_profile("qcs6490"), "qnn", "x")
    assert operators(model) == ["RMSNormalization"]
    assert "without an error" in fixes[0].reason
    np.testing.assert_allclose(run(model, x=x), run(graph(text), x=x), atol=1e-5)


def test_norms_and_gelu_are_decomposed_for_an_old_tensorrt() -> None:
    text = """g (float[2, 3] x) => (float[2, 3] y) <float[3] w = {1, 2, 3}>
    { n = LayerNormalization (x, w) y = Gelu (n) }"""
    x, before = normal(2, 3), graph(text, opset=20)
    model, fixes = fit(before, load_profile("jetson-xavier"), "tensorrt", "x")
    assert {"LayerNormalization", "Gelu"}.isdisjoint(operators(model))
    assert model.graph.opset_imports[""] <= 17
    assert {each.fix for each in fixes} >= {"GELU decomposed", "norms decomposed"}
    np.testing.assert_allclose(run(model, x=x), run(before, x=x), atol=1e-5)


def test_too_many_dimensions_become_fewer_on_qnn() -> None:
    text = """g (float[1, 8, 6, 5] x) => (float[1, 12, 4, 5] y)
      <int64[6] split = {1, 4, 2, 3, 2, 5}, int64[4] join = {1, 12, 4, 5}>
    { a = Reshape (x, split) b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a) y = Reshape (b, join) }"""
    x, before = normal(1, 8, 6, 5), graph(text)
    model, fixes = fit(before, load_profile("qcs6490"), "qnn", "x")
    assert operators(model) == ["Reshape", "Transpose", "Reshape"]
    assert {each.fix for each in fixes} == {"fewer dimensions"}
    np.testing.assert_allclose(run(model, x=x), run(before, x=x))


@pytest.mark.parametrize(("mode", "scale"), [("nearest", 2.0), ("linear", 2.0), ("nearest", 0.4)])
def test_a_resize_of_an_old_opset_takes_its_values_from_where_it_did(mode: str, scale: float) -> None:
    """ONNX's converter forgets from where, and gives no names."""
    name = "Upsample" if scale > 1 else "Resize"
    text = f'''g (float[1, 1, 5, 5] x) => (float[1, 1, h, w] y) <float[4] s = {{1.0, 1.0, {scale}, {scale}}}>
               {{ r = Relu (x) y = {name} <mode = "{mode}"> (r, s) }}'''
    model = graph(text, opset=9 if scale > 1 else 10)
    raised = to_opset(17)(model.clone())
    assert raised is not None
    assert all(node.name for node in raised.graph)
    x = normal(1, 1, 5, 5)
    np.testing.assert_allclose(run(raised, x=x), run(model, x=x), atol=1e-6)
