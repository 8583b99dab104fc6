"""Full-range INT8 products are exact on any machine: on this one, and on an emulated x86 CPU without VNNI."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeglm.export.quantize.schemes import Int4, Int8, Int8Block, Int8Static, Scheme
from edgeglm.export.quantize.storage import dequantize, encode
from edgeglm.runtimes.engines.ort import options as ort_session
from tests.export.quantize.test_lowering import DIALECTS, build
from tests.haswell import run_on_haswell

Array = NDArray[Any]
FLOAT = ir.DataType.FLOAT
ROWS, COLUMNS, TOKENS = 48, 256, 5
# Runs each model of a folder on its input, as a session of edgeglm.
CHILD = """
import sys, numpy as np
from pathlib import Path
from edgeglm.runtimes.engines.ort.options import open_session, saturates
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    (y,) = open_session(path, 1).run(None, {"x": np.load(path.with_suffix(".x.npy"))})
    np.save(path.with_suffix(".y.npy"), y)
print(saturates())
"""
# The full range of codes, of weights with a scale of 1, under activations that pairs of products overflow 16 bits with.
GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.integers(-127, 128, (ROWS, COLUMNS)).astype(np.int8)
WEIGHT[:, 0] = 127
HIGH = GENERATOR.integers(200, 256, (TOKENS, COLUMNS)).astype(np.uint8)
HIGH[:, 0], HIGH[:, 1] = 255, 0
Model = tuple[onnx.ModelProto, Array, Array]  # with its input, and what is right


def emitted() -> Iterator[tuple[str, Model]]:
    """Every operator of INT8 and INT4 weights that a module of ours has."""
    schemes: list[Scheme] = [Int8(), Int8Block(), Int8Block(128), Int4(), Int8Static(0, 255)]
    for scheme in schemes:
        for dialect in DIALECTS if not isinstance(scheme, Int8Static) else DIALECTS[:1]:
            # Activations that are integers up to 127 a block or token, or 255 a call, need no rounding.
            signed = not isinstance(scheme, Int8Static)
            x = (HIGH // 2 if signed else HIGH).astype(np.float32)
            if signed:
                x[:, ::32] = 127
            weight = WEIGHT.astype(np.float32)
            restored = dequantize(scheme, dialect, encode(scheme, dialect, weight, FLOAT), COLUMNS)
            yield f"{scheme}-{dialect}", (build(scheme, dialect, weight, None, FLOAT), x[None], (x @ restored.T)[None])


def of_users() -> Iterator[tuple[str, Model]]:
    """Operators of quantized graphs, as ONNX Runtime's tools write them."""
    exact = HIGH.astype(np.int64) @ WEIGHT.T.astype(np.int64)
    yield "MatMulInteger", plain("MatMulInteger", HIGH, WEIGHT.T, exact)
    yield "MatMul", static("MatMul", HIGH, WEIGHT.T, exact, axis=1)
    yield "MatMul without a zero point", static("MatMul", HIGH, WEIGHT.T, exact, axis=1, zero_point=False)
    yield "Gemm", static("Gemm", HIGH, WEIGHT, exact, axis=0, transB=1)
    for group in (1, 4, 16):
        images = GENERATOR.integers(200, 256, (1, 16, 6, 7)).astype(np.uint8)
        kernels = GENERATOR.integers(-127, 128, (32, 16 // group, 3, 3)).astype(np.int8)
        yield f"Conv of {group}", static("Conv", images, kernels, convolve(images, kernels, group), axis=0, group=group)


def plain(operator: str, x: Array, weight: Array, exact: Array) -> Model:
    return model([helper.make_node(operator, ["x", "w"], ["y"])], {"w": weight}, x, exact, TensorProto.INT32)


def static(
    operator: str, x: Array, weight: Array, exact: Array, *, axis: int, zero_point: bool = True, **attributes: int
) -> Model:
    """Between quantized values with a step of 1; the output is rounded to 255 steps."""
    channels = weight.shape[axis]
    values = {"one": np.float32(1), "zero": np.uint8(0), "w": weight, "ones": np.ones(channels, np.float32)}
    step = np.float32(np.abs(exact).max() / 127)
    values |= {"zeros": np.zeros(channels, np.int8), "step": step, "middle": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"][: 3 if zero_point else 2], ["b"], axis=axis),
        helper.make_node(operator, ["a", "b"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "step", "middle"], ["steps"]),
        helper.make_node("DequantizeLinear", ["steps", "step", "middle"], ["y"]),
    ]
    nodes[3].attribute.extend(helper.make_attribute(*attribute) for attribute in attributes.items())
    return model(nodes, values, x.astype(np.float32), exact, TensorProto.FLOAT)


def model(nodes: list[onnx.NodeProto], values: Mapping[str, Any], x: Array, exact: Array, kind: int) -> Model:
    source = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    result = helper.make_tensor_value_info("y", kind, exact.shape)
    weights = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "products", [source], [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), x, exact


def convolve(images: Array, kernels: Array, group: int) -> Array:
    """(1, outputs, height, width) in 64 bits, without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.int64), kernels.shape[2:], axis=(2, 3))
    parts = zip(np.split(windows, group, 1), np.split(kernels.astype(np.int64), group), strict=True)
    return np.concatenate([np.einsum("bchwij,ocij->bohw", *part) for part in parts], 1)


MODELS = {name.replace(" ", "_"): value for name, value in (*emitted(), *of_users())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("products")
    for name, (proto, x, _) in MODELS.items():
        onnx.save(proto, path / f"{name}.onnx")
        np.save(path / f"{name}.x.npy", x)
    return path


def error(folder: Path, name: str) -> float:
    exact = MODELS[name][2].astype(np.float64)
    return float(np.linalg.norm(np.load(folder / f"{name}.y.npy") - exact) / np.linalg.norm(exact))


def check(folder: Path) -> None:
    """Only the rounding of outputs to 255 steps is left."""
    errors = {name: error(folder, name) for name in MODELS}
    rounded = ("MatMul", "Gemm", "Conv")
    limits = {name: 8e-3 if name.startswith(rounded) and name != "MatMulInteger" else 2e-6 for name in MODELS}
    assert {name: value for name, value in errors.items() if value > limits[name]} == {}


def test_full_range_products_are_exact_on_this_machine(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(folder)


def test_full_range_products_are_exact_without_vnni(folder: Path) -> None:
    assert run_on_haswell("-c", CHILD, folder) == "True\n"
    check(folder)


def test_the_probe_is_the_graph_that_it_says_it_is() -> None:
    proto = onnx.load_from_string(ort_session.PRODUCT)
    (node,) = proto.graph.node
    types = [value.type.tensor_type.elem_type for value in proto.graph.input]
    assert (node.op_type, types) == ("MatMulInteger", [TensorProto.UINT8, TensorProto.INT8])


@pytest.mark.parametrize("saturating", [False, True])
def test_exact_kernels_are_asked_for_only_where_products_saturate(
    folder: Path, saturating: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_session, "saturates", lambda: saturating)
    entry, names = "session.x64quantprecision", [f"{Int8()}-{dialect}".replace(" ", "_") for dialect in DIALECTS]
    integers, floats = (ort_session.session_options(folder / f"{name}.onnx") for name in names)
    if saturating:
        assert integers.get_session_config_entry(entry) == "1"
    for options in (floats, *([] if saturating else [integers])):
        with pytest.raises(RuntimeError, match=entry):
            options.get_session_config_entry(entry)
