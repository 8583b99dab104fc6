"""Graphs in fp16 and fp64 that become INT8: by way of fp32, with inputs and outputs in their own types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.engines import EngineName
from edgeglm.errors import UnsupportedError
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.foreign.normalize.fold import fold
from edgeglm.export.foreign.normalize.single import is_other, to_single
from edgeglm.export.foreign.normalize.tidy import load_model
from edgeglm.export.prove.onnx_run import opened, run_file
from tests.export.foreign.small_graphs import graph, node, normal, value

KINDS = {"float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE}


def model_in(dtype: str) -> onnx.ModelProto:
    """Return two products, one of them in a branch, a constant of a shape, and outputs of three types."""
    kind = KINDS[dtype]
    one = onnx.numpy_helper.from_array(np.ones(1, dtype))
    then, other = (
        onnx.helper.make_graph([node("MatMul", ["t", name], [f"{name}y"])], name, [], [value(f"{name}y", [4, 8], kind)])
        for name in ("v", "u")
    )
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["t"]),
        node("If", ["c"], ["b"], then_branch=then, else_branch=other), node("Shape", ["b"], ["s"]),
        node("ConstantOfShape", ["s"], ["ones"], value=one), node("Add", ["b", "ones"], ["y"]),
        node("Cast", ["y"], ["single"], to=onnx.TensorProto.FLOAT), node("Cast", ["single"], ["z"], to=kind),
        node("ArgMax", ["z"], ["label"]),
    ]  # fmt: skip
    inputs = [value("x", [4, 16], kind), value("c", [], onnx.TensorProto.BOOL), value("same", [2], kind)]
    outputs = [value("y", None, kind), value("single", None), value("label", None, onnx.TensorProto.INT64)]
    outputs += [value("same", [2], kind), value("w", [16, 64], kind)]
    sizes = {"w": (16, 64), "v": (64, 8), "u": (64, 8)}
    return graph(nodes, inputs, outputs, {name: normal(*size).astype(dtype) for name, size in sizes.items()})


def sample(dtype: str, *, yes: bool) -> dict[str, np.ndarray]:
    return {"x": normal(4, 16).astype(dtype), "c": np.array(yes), "same": normal(2).astype(dtype)}


@pytest.mark.parametrize("dtype", KINDS)
def test_a_graph_computes_the_same_in_fp32_and_keeps_its_types(dtype: str) -> None:
    original = model_in(dtype)
    model = ir.from_proto(original)
    assert is_other(model)
    to_single(model)
    assert not is_other(model)
    for yes in (True, False):
        feeds = sample(dtype, yes=yes)
        want, got = (opened(Path(), made.SerializeToString())(feeds) for made in (original, ir.to_proto(model)))
        assert list(got) == list(want)
        for name, array in want.items():
            assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
            assert np.allclose(got[name], array, rtol=0.01, atol=0.05 if array.dtype.kind == "f" else 0)


@pytest.mark.parametrize("dtype", KINDS)
def test_it_is_exported_in_int8(dtype: str, tmp_path: Path) -> None:
    onnx.save(model_in(dtype), tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index in range(8):
        np.savez(tmp_path / f"samples/{index}.npz", **sample(dtype, yes=index % 2 == 0))  # type: ignore[arg-type]
    export(
        ExportRequest(model=str(tmp_path / "model.onnx"), target="cpu", precision="int8",
                      calibration=tmp_path / "samples", output=tmp_path / "bundle")
    )  # fmt: skip
    (module,) = read_sealed(tmp_path / "bundle").modules
    assert [value.dtype for value in module.outputs] == [dtype, "float32", "int64", dtype, dtype]
    tensors = [
        value.const_value
        for part in ir.load(tmp_path / "bundle/graph/model.onnx").graphs()
        for value in part.initializers.values()
    ]
    codes = [tuple(tensor.shape) for tensor in tensors if tensor and tensor.dtype == ir.DataType.INT8]
    assert {(16, 64), (64, 8)} <= set(codes)
    feeds = sample(dtype, yes=True)
    want, got = (run_file(tmp_path / name, feeds) for name in ("model.onnx", "bundle/graph/model.onnx"))
    assert np.linalg.norm(got["y"] - want["y"]) < 0.05 * np.linalg.norm(want["y"])


def half_inside() -> onnx.ModelProto:
    """Return a product in fp16 between inputs and outputs in fp32."""
    nodes = [node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16), node("MatMul", ["h", "w"], ["p"]),
             node("Cast", ["p"], ["y"], to=onnx.TensorProto.FLOAT)]  # fmt: skip
    weights = {"w": normal(16, 8).astype(np.float16)}
    return graph(nodes, [value("x", [4, 16])], [value("y", [4, 8])], weights)


def test_casts_to_fp16_and_back_go() -> None:
    model = load_model(half_inside(), {})
    to_single(model.clone())
    assert {value.dtype for each in model.graph for value in each.outputs} == {ir.DataType.FLOAT16, ir.DataType.FLOAT}
    to_single(model)
    assert [each.op_type for each in model.graph] == ["MatMul"]
    assert [each.name for each in model.graph.outputs] == ["y"]


def test_an_npu_takes_no_fp16_from_outside(tmp_path: Path) -> None:
    kind = onnx.TensorProto.FLOAT16
    model = graph([node("MatMul", ["x", "w"], ["y"])], [value("x", [4, 16], kind)], [value("y", [4, 8], kind)],
                  {"w": normal(16, 8).astype(np.float16)})  # fmt: skip
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index in range(4):
        np.savez(tmp_path / f"samples/{index}.npz", x=normal(4, 16).astype(np.float16))
    request = ExportRequest(
        model=str(tmp_path / "model.onnx"), target="qcs6490", precision="int8", calibration=tmp_path / "samples",
        output=tmp_path / "bundle",
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="inputs or outputs x, y are in fp16 or fp64"):
        export(request)


@pytest.mark.parametrize(("target", "nodes"), [("qnn", []), ("ort", ["Slice"])])
def test_what_constants_make_is_one_for_an_npu(target: EngineName, nodes: list[str]) -> None:
    weights = {"v": normal(32, 8), "from": np.array([0]), "to": np.array([16])}
    cut, product = node("Slice", ["v", "from", "to"], ["w"]), node("MatMul", ["x", "w"], ["y"])
    model = load_model(graph([cut, product], [value("x", [4, 16])], [value("y", [4, 8])], weights), {})
    fold(model, target)
    assert [each.op_type for each in model.graph] == [*nodes, "MatMul"]
