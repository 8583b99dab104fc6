"""Norms as one operator, and as what they are made of."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript")

import numpy as np
import onnx_ir as ir

from edgeglm.export.graph.fix.decompose_norms import DecomposeNorms
from edgeglm.export.graph.fix.fuse_norms import FuseNorms
from edgeglm.export.quantize.graph import quantize_graph
from edgeglm.export.quantize.schemes import Fp32
from tests.export.graph.fix.graphs import check_fix, graph, normal, operators

WEIGHTS = "float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {1, 0, 1, 0, 1, 0, 1, 0}"
NUMBERS = "int64[1] last = {-1}, int64[1] two = {2}, float eps = {1e-5}, float square = {2}"
HEAD = f"g (float[2, n, 8] x) => (float[2, n, 8] y) <{WEIGHTS}, {NUMBERS}>"
X = normal(2, 3, 8) * 3 + 1
RMS = {
    "divided": "s = Mul (x, x) m = ReduceMean (s, last) e = Add (m, eps) r = Sqrt (e) u = Div (x, r) y = Mul (w, u)",
    "reciprocal": "s = Pow (x, square) m = ReduceMean (s, two) e = Add (eps, m) r = Sqrt (e) i = Reciprocal (r) "
    "u = Mul (i, x) y = Mul (u, w)",
}
LAYER = {
    "divided": "c = ReduceMean (x, last) d = Sub (x, c) s = Mul (d, d) m = ReduceMean (s, last) e = Add (m, eps) "
    "r = Sqrt (e) u = Div (d, r) v = Mul (u, w) y = Add (v, b)",
    "reciprocal": "c = ReduceMean (x, two) d = Sub (x, c) s = Pow (d, square) m = ReduceMean (s, two) "
    "e = Add (m, eps) r = Sqrt (e) i = Reciprocal (r) u = Mul (d, i) v = Mul (w, u) y = Add (b, v)",
}


@pytest.mark.parametrize("form", RMS.values(), ids=RMS)
def test_rms_norm_is_fused(form: str) -> None:
    model = graph(f"{HEAD} {{ {form} }}", opset=23)
    check_fix(FuseNorms(), model, " ".join(operators(model)), "RMSNormalization", x=X)
    assert model.graph[0].attributes["epsilon"].as_float() == pytest.approx(1e-5)


@pytest.mark.parametrize("form", LAYER.values(), ids=LAYER)
def test_layer_norm_is_fused_with_its_bias(form: str) -> None:
    model = graph(f"{HEAD} {{ {form} }}", opset=20)
    check_fix(FuseNorms(), model, " ".join(operators(model)), "LayerNormalization", x=X)
    assert [value.name for value in model.graph[0].inputs if value] == ["x", "w", "b"]


def test_a_norm_whose_axes_are_an_attribute_is_fused() -> None:
    form = LAYER["divided"].replace("(x, last)", "<axes = [-1]> (x)").replace("(s, last)", "<axes = [2]> (s)")
    model = graph(f"{HEAD} {{ {form} }}", opset=17)
    check_fix(FuseNorms(), model, " ".join(operators(model)), "LayerNormalization", x=X)


def test_a_norm_in_fp32_between_casts_is_fused() -> None:
    head = HEAD.replace("float[2, n, 8]", "float16[2, n, 8]").replace("float[8]", "float16[8]")
    form = (
        "f = Cast <to = 1> (x) s = Mul (f, f) m = ReduceMean (s, last) e = Add (m, eps) r = Sqrt (e) u = Div (f, r) "
        "h = Cast <to = 10> (u) y = Mul (w, h)"
    )
    model = graph(f"{head} {{ {form} }}", opset=23)
    x = X.astype(np.float16)
    check_fix(FuseNorms(), model, " ".join(operators(model)), "RMSNormalization", tolerance=2e-2, x=x)


@pytest.mark.parametrize(
    ("old", "new"),
    [("last = {-1}", "last = {1}"), ("<", "<float[1, 8] o = {1, 1, 1, 1, 1, 1, 1, 1}, "), ("Div (x, r)", "Div (s, r)")],
    ids=["another axis", "a weight of another shape", "another value"],
)
def test_what_is_nearly_a_norm_stays(old: str, new: str) -> None:
    text = f"{HEAD} {{ {RMS['divided']} }}".replace(old, new, 1)
    if "o = " in new:
        text = text.replace("Mul (w, u)", "Mul (o, u)")
    assert not FuseNorms()(graph(text, opset=23)).modified


def test_before_opset_23_there_is_no_rms_norm() -> None:
    assert not FuseNorms()(graph(f"{HEAD} {{ {RMS['divided']} }}", opset=22)).modified


@pytest.mark.parametrize(
    ("node", "opset", "after"),
    [
        ("RMSNormalization (x, w)", 23, "Mul ReduceMean Add Sqrt Div Mul"),
        ("LayerNormalization (x, w, b)", 20, "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul Add"),
        ("LayerNormalization (x, w)", 17, "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul"),
    ],
)
def test_the_operator_is_decomposed(node: str, opset: int, after: str) -> None:
    model = graph(f"{HEAD} {{ y = {node} }}", opset)
    check_fix(DecomposeNorms(), model, model.graph[0].op_type, after, x=X)


def test_axes_before_the_last_are_decomposed_too() -> None:
    weights = "float[3, 8] w = {" + ", ".join(map(str, range(24))) + "}"
    node = "LayerNormalization <axis = 1> (x, w)"
    model = graph(f"g (float[2, 3, 8] x) => (float[2, 3, 8] y) <{weights}> {{ y = {node} }}")
    check_fix(DecomposeNorms(), model, "LayerNormalization", "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul", x=X)


def test_in_half_precision_the_mean_is_taken_in_fp32() -> None:
    head = HEAD.replace("float[2, n, 8]", "float16[2, n, 8]").replace("float[8]", "float16[8]")
    model = graph(f"{head} {{ y = RMSNormalization (x, w) }}", opset=23)
    after = "Cast Mul ReduceMean Add Sqrt Div Cast Mul"
    # The square of 1000 is more than fp16 holds.
    x = (X * 1000).astype(np.float16)
    check_fix(DecomposeNorms(), model, "RMSNormalization", after, tolerance=2e-2, x=x)


def test_the_norm_of_the_portable_dialect_is_fused() -> None:
    """As `edgeglm.export.quantize.graph` lowers it, which QNN would compute wrong."""
    text = """g (float[1, n, 8] x) => (float[1, n, 8] y)
      { y = edgeglm.RMSNorm <weights = ["norm"], size = 8, epsilon = 1e-5> (x) }"""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23, "edgeglm" : 1]> {text}')
    quantize_graph(model, "portable", lambda _: Fp32())
    assert FuseNorms()(model).modified
    assert operators(model) == ["RMSNormalization"]
