from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")

import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgeglm.engines import Dialect
from edgeglm.export.quantize.lowering import lower_linear, opset_imports
from edgeglm.export.quantize.schemes import Fp16, Fp32, Int4, Int8, Int8Block, Int8Static, Scheme
from edgeglm.export.quantize.storage import dequantize, encode, parts
from edgeglm.runtimes.engines.ort.options import open_session, session_options

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
DIALECTS: tuple[Dialect, ...] = ("ort", "portable")
SCHEMES: list[Scheme] = [Fp32(), Fp16(), Int8(), Int8Block(), Int8Block(128), Int4(32), Int4(), Int4(128)]
# In 256 steps, the values of `activations` are exact; those of a Gaussian need a wider range.
EXACT, WIDE = Int8Static(-1, 127 / 128), Int8Static(-4, 4)
# (scheme, dialect, type of the activations): MatMulIntegerToFloat takes fp32 alone.
FORMS: list[tuple[Scheme, Dialect, ir.DataType]] = [
    (scheme, dialect, dtype)
    for scheme in SCHEMES
    for dialect, dtype in itertools.product(DIALECTS, (FLOAT, FLOAT16))
    if (dialect, dtype) != ("ort", FLOAT16) or not isinstance(scheme, Int8)
] + [(EXACT, "ort", FLOAT)]
every_form = pytest.mark.parametrize(("scheme", "dialect", "dtype"), FORMS, ids=str)
Array = NDArray[np.float32]


def build(
    scheme: Scheme, dialect: Dialect, weight: Array, bias: Array | None, dtype: ir.DataType, chunk: int = 6
) -> onnx.ModelProto:
    """A checked model of one Linear layer, its weight encoded in chunks."""
    rows, columns = weight.shape
    planned = parts(scheme, dialect, rows, columns, dtype)
    pieces = [encode(scheme, dialect, weight[row : row + chunk], dtype) for row in range(0, rows, chunk)]
    values = []
    for part, *arrays in zip(planned, *pieces, strict=True):
        array = np.concatenate(arrays, part.row_axis)
        values.append(initializer(part.suffix, array, part.dtype, part.shape))
    offset = None if bias is None else initializer("bias", bias.astype(dtype.numpy()), dtype, bias.shape)
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(["batch", "sequence", columns]))
    nodes, y = lower_linear(scheme, dialect, x, tuple(values), offset, rows=rows, columns=columns, name="y")
    graph = ir.Graph(
        [x],
        [y],
        nodes=nodes,
        initializers=[*values, *([offset] if offset else [])],
        opset_imports=opset_imports(scheme, dialect),
        name="linear",
    )
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    onnx.checker.check_model(model, full_check=True)
    return model


def initializer(name: str, array: NDArray[Any], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    tensor: ir.TensorProtocol = ir.tensor(array)
    if dtype == ir.DataType.INT4:
        tensor = ir.PackedTensor(array, dtype, shape=ir.Shape(shape))
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)


def run_onnxruntime(model: onnx.ModelProto, x: NDArray[Any]) -> Array:
    graph = model.SerializeToString()
    session = onnxruntime.InferenceSession(graph, session_options(graph, 1), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0], np.float32)


def run_reference(model: onnx.ModelProto, x: NDArray[Any]) -> Array:
    (y,) = ReferenceEvaluator(model).run(["y"], {"x": x})
    return np.asarray(y, np.float32)


def relative_error(value: Array, exact: Array) -> float:
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def layer(rows: int, columns: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(rows + columns)
    weight = generator.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
    return weight, generator.standard_normal(rows, np.float32)


def activations(columns: int, dtype: ir.DataType) -> NDArray[Any]:
    """Values that INT8 activations represent exactly, per token and per block: so only the weights' bytes can err."""
    x = np.random.default_rng(3).integers(-126, 127, (2, 3, columns)).astype(np.float32)
    x[..., ::32], x[..., 1::32] = -127, 127
    return (x / 128).astype(dtype.numpy())


@every_form
@pytest.mark.parametrize("columns", [256, 320, 75])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_the_engine_multiplies_by_the_dequantized_weight(
    scheme: Scheme, dialect: Dialect, dtype: ir.DataType, columns: int, with_bias: bool
) -> None:
    weight, bias = layer(10, columns)
    model = build(scheme, dialect, weight, bias if with_bias else None, dtype)
    x = activations(columns, dtype)
    restored = dequantize(scheme, dialect, encode(scheme, dialect, weight, dtype), columns)
    expected = x.astype(np.float32) @ restored.T + (bias if with_bias else 0)
    tolerance = 2e-6 if dtype == FLOAT else 2e-3
    assert relative_error(run_onnxruntime(model, x), expected) < tolerance
    if dialect == "portable":
        assert relative_error(run_reference(model, x), expected) < tolerance


ERRORS: dict[tuple[type[Scheme], Dialect], float] = {
    (Fp32, "ort"): 1e-6,
    (Fp32, "portable"): 1e-6,
    (Fp16, "ort"): 4e-4,
    (Fp16, "portable"): 4e-4,
    (Int8, "ort"): 0.014,
    (Int8, "portable"): 0.009,
    (Int8Static, "ort"): 0.014,
    (Int8Block, "ort"): 0.012,
    (Int8Block, "portable"): 0.011,
    (Int4, "ort"): 0.105,
    (Int4, "portable"): 0.11,
}


@every_form
def test_the_error_against_the_exact_product_is_the_schemes(
    scheme: Scheme, dialect: Dialect, dtype: ir.DataType
) -> None:
    scheme = WIDE if scheme == EXACT else scheme
    weight, bias = layer(64, 512)
    x = np.random.default_rng(4).standard_normal((1, 16, 512)).astype(dtype.numpy())
    y = run_onnxruntime(build(scheme, dialect, weight, bias, dtype), x)
    half = 1e-3 if dtype == FLOAT16 else 0.0
    assert relative_error(y - bias, x.astype(np.float32) @ weight.T) < ERRORS[type(scheme), dialect] + half


@pytest.mark.parametrize("scheme", [Int8(), Int8Block(), Int4()], ids=str)
def test_an_outlier_token_costs_the_others_nothing(scheme: Scheme) -> None:
    weight, _ = layer(64, 512)
    model = build(scheme, "ort", weight, None, FLOAT)
    x = np.random.default_rng(4).standard_normal((1, 16, 512)).astype(np.float32)
    x[:, 0] *= 1000
    others = run_onnxruntime(model, x)[:, 1:]
    assert relative_error(others, x[:, 1:] @ weight.T) < 1.1 * ERRORS[type(scheme), "ort"]


def test_static_int8_is_one_integer_product_in_the_engine(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(build(WIDE, "ort", *layer(64, 512), FLOAT).SerializeToString())
    open_session(tmp_path / "model.onnx", 1, save_to=tmp_path / "optimized.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "MatMul" not in operators
    assert operators & {"MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger"}


def test_static_int8_clips_what_its_range_does_not_hold() -> None:
    weight, _ = layer(8, 64)
    x = np.full((1, 1, 64), 100, np.float32)
    y = run_onnxruntime(build(WIDE, "ort", weight, None, FLOAT), x)
    assert relative_error(y, np.full_like(x, 4) @ weight.T) < 0.02


@pytest.mark.parametrize("scheme", [Int8(), Int8Block(), Int4()], ids=str)
def test_a_token_is_computed_as_it_is_alone(scheme: Scheme) -> None:
    """Whatever the others are: so a pass over drafts, or of several answers, gives the bytes of single steps."""
    x = np.random.default_rng(5).standard_normal((1, 8, 512), np.float32)
    x *= np.array([1, 64, 1e-3, 7] * 2, np.float32)[:, None]
    model = build(scheme, "ort", *layer(64, 512), FLOAT)
    alone = np.concatenate([run_onnxruntime(model, x[:, token : token + 1]) for token in range(8)], 1)
    difference = relative_error(run_onnxruntime(model, x), alone)
    assert difference == 0 if scheme == Int8() else difference < 1e-6


def test_tokens_of_zeros_give_the_bias() -> None:
    weight, bias = layer(10, 64)
    y = run_onnxruntime(build(Int8(), "ort", weight, bias, FLOAT), np.zeros((1, 2, 64), np.float32))
    assert np.array_equal(y, np.broadcast_to(bias, y.shape))


@every_form
def test_no_node_mixes_floating_point_types(scheme: Scheme, dialect: Dialect, dtype: ir.DataType) -> None:
    model = onnx.shape_inference.infer_shapes(build(scheme, dialect, *layer(8, 64), dtype))
    graph = ir.from_proto(model).graph
    floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    mixed = [
        node.op_type
        for node in graph
        if len({value.dtype for value in (*node.inputs, *node.outputs) if value and value.dtype in floats}) > 1
        and node.op_type != "Cast"
    ]
    assert mixed == []
    assert graph.outputs[0].dtype == dtype


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_the_portable_dialect_alone_keeps_to_standard_operators(dialect: Dialect) -> None:
    domains = {node.domain for scheme in SCHEMES for node in build(scheme, dialect, *layer(8, 64), FLOAT).graph.node}
    assert domains == ({"", "com.microsoft"} if dialect == "ort" else {""})


def test_names_and_shape_are_the_layers() -> None:
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(["batch", 7, 64]))
    weight = ir.Value(name="w", type=ir.TensorType(FLOAT), shape=ir.Shape([64, 8]))
    bias = ir.Value(name="b", type=ir.TensorType(FLOAT), shape=ir.Shape([8]))
    nodes, y = lower_linear(Fp32(), "ort", x, (weight,), bias, rows=8, columns=64, name="layers.0.q")
    assert [node.name for node in nodes] == ["layers.0.q.matmul", "layers.0.q.add"]
    assert (y.name, y.shape, y.dtype) == ("layers.0.q", ir.Shape(["batch", 7, 8]), FLOAT)


@pytest.mark.parametrize(
    ("x_dtype", "bias_dtype", "why"),
    [
        (None, FLOAT, "activations are None"),
        (ir.DataType.INT8, FLOAT, "activations are INT8"),
        (FLOAT, FLOAT16, "bias is FLOAT16 and activations are FLOAT"),
        (FLOAT16, FLOAT16, "MatMulIntegerToFloat takes FLOAT activations, not FLOAT16"),
    ],
)
def test_types_that_the_operator_cannot_take_are_refused(
    x_dtype: ir.DataType | None, bias_dtype: ir.DataType, why: str
) -> None:
    x = ir.Value(name="x", type=None if x_dtype is None else ir.TensorType(x_dtype))
    bias = ir.Value(name="b", type=ir.TensorType(bias_dtype))
    with pytest.raises(ValueError, match=f"y: {why}"):
        lower_linear(Int8(), "ort", x, (), bias, rows=8, columns=64, name="y")
