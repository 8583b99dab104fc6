"""The arithmetic of an accelerator in half precision, operator by operator beside ONNX's reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeglm.export.prove.fp16_arithmetic import HalfGraph

HALF = TensorProto.FLOAT16
Array = NDArray[Any]
# Of one operator, and what its reference is apart from one rounding: it rounds every step inside of an operator too.
EXACT, STEPS = 0.0, 4e-3
OPERATORS: dict[str, tuple[str, float]] = {
    "Add": ("y = Add(a, b)", EXACT),
    "Sub": ("y = Sub(a, b)", EXACT),
    "Mul": ("y = Mul(a, b)", EXACT),
    "Div": ("y = Div(a, b)", EXACT),
    "Max": ("y = Max(a, b)", EXACT),
    "Neg": ("y = Neg(a)", EXACT),
    "Sqrt": ("t = Abs(a) y = Sqrt(t)", EXACT),
    "Where": ("m = Less(a, b) y = Where(m, a, b)", EXACT),
    "MatMul": ("t = Transpose<perm = [1, 0]>(b) y = MatMul(a, t)", 1e-3),
    "Gemm": ("y = Gemm<transB = 1>(a, b)", 2e-3),
    "Sigmoid": ("y = Sigmoid(a)", STEPS),
    "Tanh": ("y = Tanh(a)", STEPS),
    "Erf": ("y = Erf(a)", STEPS),
    "Gelu": ("y = Gelu(a)", STEPS),
    "Softmax": ("y = Softmax<axis = -1>(a)", STEPS),
    "ReduceMean": ("y = ReduceMean<keepdims = 1>(a)", STEPS),
    "LayerNormalization": ("y = LayerNormalization<axis = -1>(a, r)", STEPS),
    "Pow": ("t = Constant<value_float = 2.0>() e = CastLike(t, a) y = Pow(a, e)", STEPS),
    "Split": ("y, z = Split<axis = 1, num_outputs = 2>(a)", EXACT),
    "Concat": ("y = Concat<axis = 0>(a, b)", EXACT),
    "Cast": ("w = Cast<to = 1>(a) s = Mul(w, w) y = Cast<to = 10>(s)", EXACT),
}


def model(text: str) -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["" : 20]> graph (float16[5, 8] a, float16[5, 8] b, float16[8] r)'
    made: onnx.ModelProto = onnx.parser.parse_model(f"{header} => (float16[n, m] y) {{ {text} }}")
    return made


def arrays(size: float) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        name: np.clip(random.standard_normal(shape) * size, -65504, 65504).astype(np.float16)
        for name, shape in {"a": (5, 8), "b": (5, 8), "r": (8,)}.items()
    }


def both(proto: onnx.ModelProto, feeds: dict[str, Array], folder: Path) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        want = np.asarray(ReferenceEvaluator(proto).run(["y"], feeds)[0])  # type: ignore[index]
    got = HalfGraph(proto, folder).run(feeds)["y"]
    assert got.dtype == want.dtype == np.float16
    return got.astype(np.float64), want.astype(np.float64)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_is_the_reference_evaluators(operator: str, tmp_path: Path) -> None:
    text, tolerance = OPERATORS[operator]
    got, want = both(model(text), arrays(1), tmp_path)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("operator", ["Add", "Mul", "MatMul", "Cast", "Sub"])
def test_what_fp16_does_not_hold_is_infinite(operator: str, tmp_path: Path) -> None:
    feeds = arrays(40_000)
    got, want = both(model(OPERATORS[operator][0]), feeds, tmp_path)
    finite = np.isfinite(want)
    assert not finite.all()
    np.testing.assert_array_equal(got[~finite], want[~finite])
    assert np.isfinite(got[finite]).all()


def test_the_first_overflow_is_named(tmp_path: Path) -> None:
    graph = HalfGraph(model("t = Mul(a, a) u = Mul(t, t) v = Sub(u, u) y = Add(v, b)"), tmp_path)
    y = graph.run(arrays(30))["y"]
    assert graph.overflow == "u"
    assert np.isnan(y).any()
    assert np.isfinite(graph.run(arrays(1))["y"]).all()
    assert graph.overflow is None


def test_a_product_is_summed_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    """4,096 ones: sums in fp16 would stay at 2,048."""
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float16[1, 4096] a, float16[4096, 1] b) => (float16[1, 1] y)'
    graph = HalfGraph(onnx.parser.parse_model(f"{text} {{ y = MatMul(a, b) }}"), tmp_path)
    ones = {"a": np.ones((1, 4096), np.float16), "b": np.full((4096, 1), 1.5, np.float16)}
    assert graph.run(ones)["y"].item() == 6144


def stored(kind: str, folder: Path, lines: int = 128, columns: int = 96) -> onnx.ModelProto:
    """``x`` times a matrix in a file of weights, in one of the portable dialect's forms."""
    random = np.random.default_rng(1)
    attributes: dict[str, Any] = {"axis": 1}
    scale = random.uniform(0.01, 0.02, columns).astype(np.float16)
    if kind == "fp16":
        weights = {"w": numpy_helper.from_array(random.standard_normal((lines, columns)).astype(np.float16), "w")}
    else:
        if kind != "int8":
            attributes = {"axis": 0, "block_size": 32}
            scale = random.uniform(0.01, 0.02, (lines // 32, columns)).astype(np.float16)
        low, data_type = (-7, TensorProto.INT4) if kind == "int4" else (-127, TensorProto.INT8)
        codes = random.integers(low, -low + 1, (lines, columns))
        weights = {
            "codes": raw("codes", data_type, codes),
            "scale": numpy_helper.from_array(scale, "scale"),
        }
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if kind != "fp16":
        nodes.insert(0, helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], **attributes))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", HALF, [3, lines])],
        [helper.make_tensor_value_info("y", HALF, [3, columns])],
        list(weights.values()),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return onnx.load(path)


def raw(name: str, data_type: int, codes: NDArray[np.int64]) -> TensorProto:
    """A tensor with its data as bytes, which can be in a file."""
    if data_type == TensorProto.INT4:
        low = codes.ravel() & 15
        data = (low[0::2] | (low[1::2] << 4)).astype(np.uint8).tobytes()
    else:
        data = codes.astype(np.int8).tobytes()
    return helper.make_tensor(name, data_type, codes.shape, data, raw=True)


@pytest.mark.parametrize("kind", ["fp16", "int8", "int8-block", "int4"])
@pytest.mark.parametrize("chunk", [4 << 20, 4 * 96 * 40])
def test_a_matrix_in_a_file_is_multiplied_by_pieces(
    kind: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of 40 lines do not end where blocks of 32 do."""
    monkeypatch.setattr("edgeglm.export.prove.fp16_arithmetic.CHUNK_BYTES", chunk)
    proto = stored(kind, tmp_path)
    x = np.random.default_rng(2).standard_normal((3, 128)).astype(np.float16)
    want = np.asarray(ReferenceEvaluator(proto).run(["y"], {"x": x})[0])  # type: ignore[index]
    got = HalfGraph.open(tmp_path / "model.onnx").run({"x": x})["y"]
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=2e-3, atol=2e-3)


def test_a_matrix_in_a_file_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored("int4", tmp_path)
    graph, most = HalfGraph.open(tmp_path / "model.onnx"), 0
    codes = graph.weights["codes"]
    lines = codes.lines

    def count(start: int, stop: int) -> Array:
        nonlocal most
        most = max(most, stop - start)
        return lines(start, stop)

    monkeypatch.setattr("edgeglm.export.prove.fp16_arithmetic.CHUNK_BYTES", 4 * 96 * 32)
    monkeypatch.setattr(codes, "lines", count)
    graph.run({"x": np.ones((3, 128), np.float16)})
    assert most == 32


def test_a_body_is_refused(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["n"])], "b", [], [helper.make_empty_tensor_value_info("n")]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("a", HALF, [2])],
        [helper.make_tensor_value_info("y", HALF, [2])],
    )
    with pytest.raises(ValueError, match=r"If .* has a body"):
        HalfGraph(helper.make_model(graph), tmp_path)
