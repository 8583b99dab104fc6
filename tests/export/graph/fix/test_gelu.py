"""GELU as one operator, and as what it is made of."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript")

import math

import numpy as np

from edgeglm.export.graph.fix.decompose_gelu import DecomposeGelu
from edgeglm.export.graph.fix.fuse_gelu import FuseGelu
from tests.export.graph.fix.graphs import check_fix, graph, normal, operators

X = np.concatenate([normal(60), np.array([-30, -6, 6, 30], np.float32)])
CONSTANTS = f"""<float half = {{0.5}}, float one = {{1}},
  float root = {{{math.sqrt(2)}}}, float inverse = {{{1 / math.sqrt(2)}}},
  float three = {{3}}, float cubic = {{0.044715}}, float scale = {{{math.sqrt(2 / math.pi)}}}>"""
HEAD = f"g (float[n] x) => (float[n] y) {CONSTANTS}"
ERF_FORMS = {
    "x times gate": "a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half)",
    "half of x": "a = Mul (x, inverse) b = Erf (a) c = Add (one, b) d = Mul (half, x) y = Mul (c, d)",
    "half of gate": "a = Mul (inverse, x) b = Erf (a) c = Add (b, one) d = Mul (half, c) y = Mul (x, d)",
}
TANH_FORMS = {
    "power": "p = Pow (x, three) q = Mul (cubic, p) r = Add (x, q) s = Mul (r, scale) t = Tanh (s)",
    "products": "o = Mul (x, x) p = Mul (o, x) q = Mul (p, cubic) r = Add (q, x) s = Mul (scale, r) t = Tanh (s)",
}


@pytest.mark.parametrize("form", ERF_FORMS.values(), ids=ERF_FORMS)
def test_every_form_with_erf_is_fused(form: str) -> None:
    model = graph(f"{HEAD} {{ {form} }}")
    check_fix(FuseGelu(), model, " ".join(operators(model)), "Gelu", x=X)


@pytest.mark.parametrize("form", TANH_FORMS.values(), ids=TANH_FORMS)
def test_every_form_with_tanh_is_fused(form: str) -> None:
    model = graph(f"{HEAD} {{ {form} u = Add (t, one) v = Mul (x, u) y = Mul (half, v) }}")
    check_fix(FuseGelu(), model, " ".join(operators(model)), "Gelu", x=X)
    assert model.graph[0].attributes["approximate"].as_string() == "tanh"


@pytest.mark.parametrize(
    ("old", "new"), [("half = {0.5}", "half = {0.6}"), ("one = {1}", "one = {2}"), ("d = Mul (x, c)", "d = Mul (a, c)")]
)
def test_what_is_nearly_gelu_stays(old: str, new: str) -> None:
    text = f"{HEAD} {{ {ERF_FORMS['x times gate']} }}"
    assert old in text
    assert not FuseGelu()(graph(text.replace(old, new))).modified


def test_before_opset_20_there_is_no_gelu() -> None:
    assert not FuseGelu()(graph(f"{HEAD} {{ {ERF_FORMS['x times gate']} }}", opset=19)).modified


@pytest.mark.parametrize(
    ("node", "after"),
    [
        ("Gelu (x)", "Div Erf Mul Add Mul"),
        ('Gelu <approximate = "tanh"> (x)', "Mul Mul Mul Add Mul Tanh Mul Add Mul"),
        ("com.microsoft.Gelu (x)", "Div Erf Mul Add Mul"),
        ("com.microsoft.FastGelu (x)", "Mul Mul Mul Add Mul Tanh Mul Add Mul"),
    ],
)
def test_the_operator_is_decomposed(node: str, after: str) -> None:
    model = graph(f"g (float[n] x) => (float[n] y) {{ y = {node} }}")
    check_fix(DecomposeGelu(), model, model.graph[0].op_type, after, x=X)


def test_a_fused_one_is_decomposed_to_what_is_fused_again() -> None:
    model = graph("g (float[n] x) => (float[n] y) { y = Gelu (x) }")
    DecomposeGelu()(model)
    assert FuseGelu()(model).modified
    assert operators(model) == ["Gelu"]
