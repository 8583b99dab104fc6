"""Each pass: the graph before and after, and equal outputs where the graph can run as it is."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx_ir")

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edgeglm.export.graph.cache_order import check_cache_order
from edgeglm.export.graph.passes.fuse_linears import FuseLinears
from edgeglm.export.graph.passes.fuse_skip_norm import FuseSkipNorm
from edgeglm.export.graph.passes.join_split import JoinSplit
from edgeglm.export.graph.passes.merge_reshapes import MergeReshapes
from edgeglm.export.graph.passes.quick_gelu import QuickGelu

HEADER = '<ir_version: 10, opset_import: ["" : 20, "edgeglm" : 1, "com.microsoft" : 1]>'


def graph(text: str) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER}\n{text}")


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    model.graph.opset_imports.pop("edgeglm", None)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    outputs: list[NDArray[np.float32]] = session.run(None, inputs)
    return outputs


RESHAPES = """
g (float[1, n, 6] x) => (float[1, n, 6] y)
<int64[4] split = {1, -1, 2, 3}, int64[3] flat = {1, -1, 6}>
{
  heads = Reshape (x, split)
  joined = Reshape (heads, flat)
  y = Relu (joined)
}
"""


def with_shapes(model: ir.Model, **shapes: list[int | str]) -> ir.Model:
    for node in model.graph:
        for output in node.outputs:
            if output.name in shapes:
                output.shape, output.type = ir.Shape(shapes[output.name]), ir.TensorType(ir.DataType.FLOAT)
    return model


def test_a_round_trip_of_reshapes_disappears() -> None:
    x = np.random.default_rng(0).standard_normal((1, 5, 6), np.float32)
    (before,) = run(graph(RESHAPES), x=x)
    model = with_shapes(graph(RESHAPES), heads=[1, "n", 2, 3], joined=[1, "n", 6])
    assert MergeReshapes()(model).modified
    assert operators(model) == ["Relu"]
    assert np.array_equal(run(model, x=x)[0], before)
    assert not MergeReshapes()(model).modified


def test_reshapes_to_another_shape_become_one() -> None:
    model = with_shapes(graph(RESHAPES), heads=[1, "n", 2, 3], joined=["n", 6])
    assert MergeReshapes()(model).modified
    assert operators(model) == ["Reshape", "Relu"]


SILU = """
g (float[n] x) => (float[n] y)
{
  gate = Sigmoid (x)
  y = Mul (x, gate)
}
"""


def test_silu_becomes_quick_gelu() -> None:
    x = np.linspace(-9, 9, 64, dtype=np.float32)
    (before,) = run(graph(SILU), x=x)
    model = graph(SILU)
    assert QuickGelu()(model).modified
    assert operators(model) == ["QuickGelu"]
    np.testing.assert_allclose(run(model, x=x)[0], before, atol=1e-6)


def test_a_gate_of_another_value_stays() -> None:
    model = graph(SILU.replace("Mul (x, gate)", "Mul (gate, gate)"))
    assert not QuickGelu()(model).modified


ATTENTION = """
g (float[1, n, 8] x) => (float[1, n, 8] y, float[1, n, 16] z)
{
  q = edgeglm.Linear <weights = ["q_proj"], rows = 8, columns = 8, bias = 1> (x)
  k = edgeglm.Linear <weights = ["k_proj"], rows = 8, columns = 8, bias = BIAS> (x)
  v = edgeglm.Linear <weights = ["v_proj"], rows = 8, columns = 8, bias = 1> (x)
  qkv = Concat <axis = -1> (ORDER)
  y, z = Split <axis = -1> (qkv, sizes)
}
"""


def attention(bias: int, order: str) -> ir.Model:
    model = graph(ATTENTION.replace("BIAS", f"{bias}").replace("ORDER", order))
    narrow: list[int | str] = [1, "n", 8]
    return with_shapes(model, qkv=[1, "n", 24], q=narrow, k=narrow, v=narrow)


def test_projections_of_one_input_become_one_and_stay_joined() -> None:
    model = attention(1, "q, k, v")
    assert FuseLinears()(model).modified
    assert operators(model) == ["Linear", "Split", "Concat", "Split"]
    linear = model.graph[0]
    assert list(linear.attributes["weights"].as_strings()) == ["q_proj", "k_proj", "v_proj"]
    assert linear.attributes["rows"].as_int() == 24
    assert JoinSplit()(model).modified
    assert operators(model) == ["Linear", "Split"]
    assert model.graph[1].inputs[0] is linear.outputs[0]


def test_projections_with_and_without_a_bias_stay_apart() -> None:
    model = attention(0, "q, k, v")
    assert FuseLinears()(model).modified
    assert operators(model).count("Linear") == 2
    assert not JoinSplit()(model).modified


def test_what_is_joined_in_another_order_stays() -> None:
    model = attention(1, "k, q, v")
    assert FuseLinears()(model).modified
    assert not JoinSplit()(model).modified


CACHED = """
g (float[1, n, 8] x, float[t, 2, 4] cache_key.0, float[t, 2, 4] cache_value.0)
  => (float[2, n, 4] y, float[1, n, 8] new_key.0, float[1, n, 8] new_value.0)
{
  new_value.0 = Relu (VALUE)
  q, new_key.0 = Split <axis = -1> (new_value.0)
  scores = com.microsoft.FusedMatMul <transB = 1, transBatchB = 1> (q, cache_key.0)
  y = com.microsoft.FusedMatMul <transBatchB = 1> (scores, cache_value.0)
}
"""


def cached(text: str) -> ir.Model:
    model = graph(text.replace("key.0", "key_0").replace("value.0", "value_0"))  # which the parser takes
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = f"{value.name}".replace("_0", ".0")
    return model


def test_a_cache_is_read_behind_the_nodes_that_write_it() -> None:
    check_cache_order(cached(CACHED.replace("VALUE", "x")))
    apart = CACHED.replace("VALUE", "x").replace("(new_value.0)", "(x)")
    with pytest.raises(ValueError, match=r"may read cache_value\.0 before its new rows are written"):
        check_cache_order(cached(apart))


RESIDUAL = """
g (float[1, n, 8] a, float[1, n, 8] b) => (float[1, n, 8] y, float[1, n, 8] z)
{
  total = Add (a, b)
  y = edgeglm.RMSNorm <weights = ["norm"], size = 8, epsilon = 1.0e-5> (total)
  z = Relu (total)
}
"""


def test_a_norm_of_a_sum_becomes_one_operator_that_gives_both() -> None:
    model = with_shapes(graph(RESIDUAL), total=[1, "n", 8])
    assert FuseSkipNorm()(model).modified
    assert operators(model) == ["SkipRMSNorm", "Relu"]
    assert model.graph[1].inputs[0] is model.graph[0].outputs[1]


def test_a_broadcast_sum_is_no_residual() -> None:
    model = with_shapes(graph(RESIDUAL.replace("float[1, n, 8] b", "float[8] b")), total=[1, "n", 8])
    assert not FuseSkipNorm()(model).modified
