"""A graph in half precision on ONNX Runtime with its roundings kept, beside the proof's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeglm.export.evaluate.fp16_sessions import round_results
from edgeglm.export.prove.fp16_arithmetic import HalfGraph

HEADER = '<ir_version: 10, opset_import: ["" : 20]> graph (float16[3, 8] a, float16[8, 8] w) => (float16[n, m] y)'
OVERFLOWS = "p = MatMul(a, w) q = Sub(p, p) y = Add(q, a)"
HEALTHY = """
  p = MatMul(a, w)
  s = Softmax<axis = -1>(p)
  t = Transpose<perm = [1, 0]>(w)
  u = MatMul(s, t)
  g = Sigmoid(u)
  h = Mul(u, g)
  y = Add(h, a)"""


def run(text: str, size: float, tmp_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As the engine runs it, with its roundings kept, and in the proof's arithmetic."""
    proto = onnx.parser.parse_model(f"{HEADER} {{ {text} }}")
    random = np.random.default_rng(0)
    feeds = {name: (random.standard_normal((rows, 8)) * size).astype(np.float16) for name, rows in (("a", 3), ("w", 8))}
    plain, rounded = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, feeds)[0]
        for each in (proto, round_results(proto))
    )
    return plain, rounded, HalfGraph(proto, tmp_path).run(feeds)["y"]


def test_what_overflows_does_so_here_too(tmp_path: Path) -> None:
    """The engine itself computes a finite number, which no GPU does."""
    plain, rounded, proven = run(OVERFLOWS, 300, tmp_path)
    assert np.isfinite(plain).all()
    assert not np.isfinite(rounded).all()
    np.testing.assert_array_equal(rounded, proven)


@pytest.mark.parametrize("size", [0.1, 1, 4])
def test_every_result_is_rounded(size: float, tmp_path: Path) -> None:
    _, rounded, proven = run(HEALTHY, size, tmp_path)
    assert rounded.dtype == np.float16
    np.testing.assert_allclose(rounded.astype(np.float64), proven.astype(np.float64), rtol=2e-3, atol=2e-3 * size)


def test_a_body_may_take_what_is_taken_around_it() -> None:
    """Every name is given once, in bodies of bodies too."""
    text = """p = Add(a, a) s = ReduceMean<keepdims = 0>(p) f = Cast<to = 1>(s)
      z = Constant<value_float = 0.0>() c = Less(z, f)
      y = If(c) <
        then_branch = inner () => (float16[n, m] t) {
          o = Mul(a, p)
          t = If(c) <then_branch = deep () => (float16[n, m] u) { u = Sub(a, o) },
                     else_branch = flat () => (float16[n, m] v) { v = Neg(a) }>
        },
        else_branch = other () => (float16[n, m] w2) { w2 = Relu(a) }
      >"""
    proto = onnx.parser.parse_model(f"{HEADER} {{ {text} }}")
    for size in (1, -1):
        feeds = {"a": np.full((3, 8), size, np.float16), "w": np.zeros((8, 8), np.float16)}
        plain, rounded = (
            onnxruntime.InferenceSession(made.SerializeToString()).run(None, feeds)[0]
            for made in (proto, round_results(proto))
        )
        np.testing.assert_allclose(rounded, plain, rtol=2e-3)
