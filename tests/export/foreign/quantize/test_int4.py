"""INT4 of graphs for a CPU: products in blocks, other weights in INT8, and what it ruins kept wider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.errors import UnsupportedError
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.prove.onnx_run import opened
from tests.export.foreign.small_graphs import graph, node, normal, value


def test_products_in_int4_others_in_int8(tmp_path: Path) -> None:
    """A MatMul and a Gemm in blocks, a convolution and a short product in INT8, and the manifest says int4."""
    weights = {"wc": normal(8, 4, 3), "wm": normal(8, 96) * 0.1, "wg": normal(32, 96) * 0.1, "b": normal(32)}
    wide = normal(96, 96) * 0.1
    nodes = [
        node("Conv", ["x", "wc"], ["c"], pads=[1, 1]), node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["t", "wm"], ["m"]), node("Relu", ["m"], ["r"]), node("MatMul", ["r", "wide"], ["w"]),
        node("Reshape", ["w", "rows"], ["flat"]), node("Gemm", ["flat", "wg", "b"], ["y"], transB=1),
    ]  # fmt: skip
    constants = {**weights, "wide": wide, "rows": np.array([-1, 96])}
    model = graph(nodes, [value("x", [1, 4, 20])], [value("y", [20, 32])], constants)
    onnx.save(model, tmp_path / "model.onnx")
    request = ExportRequest(
        model=str(tmp_path / "model.onnx"), target="cpu", precision="int4", output=tmp_path / "bundle"
    )
    notes = export(request).notes

    module = read_sealed(tmp_path / "bundle").modules[0]
    made = ir.load(tmp_path / "bundle/graph/model.onnx")
    products = [node for node in made.graph if node.op_type == "MatMulNBits"]
    assert [node.attributes.get_int("K", 0) for node in products] == [96, 96]
    assert module.precision == "int4"
    assert module.max_relative_error is not None
    x = normal(1, 4, 20)
    files = tmp_path / "model.onnx", tmp_path / "bundle/graph/model.onnx"
    want, got = (opened(file)({"x": x})["y"] for file in files)
    assert 0.005 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.2
    assert not [note for note in notes if "of 1 forms" in note]


def test_a_product_that_int4_ruins_is_in_int8(tmp_path: Path) -> None:
    """Large rows beside small ones in a block, where the small ones decide."""
    ruined = normal(64, 64) * 0.01
    ruined[::2] *= 12  # the inputs of these are nought
    even = np.zeros(64, np.float32)
    even[1::2] = 1
    nodes = [
        node("Mul", ["x", "even"], ["e"]), node("MatMul", ["e", "ruined"], ["m"], name="ruined"),
        node("MatMul", ["m", "fine"], ["y"], name="fine"),
    ]  # fmt: skip
    constants = {"even": even, "ruined": ruined, "fine": normal(64, 64) * 0.1}
    onnx.save(graph(nodes, [value("x", [4, 64])], [value("y", [4, 64])], constants), tmp_path / "model.onnx")
    request = ExportRequest(
        model=str(tmp_path / "model.onnx"), target="cpu", precision="int4", output=tmp_path / "bundle"
    )
    notes = export(request).notes
    (note,) = [note for note in notes if note.startswith("weights in INT8, most to blame first")]
    assert note.partition(": ")[2].startswith("ruined (MatMul)")


@pytest.mark.parametrize(
    ("target", "columns", "why"),
    [("cpu", 32, "INT4 is for matrix products"), ("jetson", 64, "TensorRT has no int4 of graphs of your own")],
)
def test_int4_is_refused_in_one_line(target: str, columns: int, why: str, tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    model = graph(nodes, [value("x", [2, columns])], [value("y", [2, 64])], {"w": normal(columns, 64)})
    onnx.save(model, tmp_path / "model.onnx")
    request = ExportRequest(model=str(tmp_path / "model.onnx"), target=target, precision="int4", output=tmp_path / "b")
    with pytest.raises(UnsupportedError, match=why):
        export(request)
    assert not (tmp_path / "b").exists()
