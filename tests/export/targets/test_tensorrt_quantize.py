"""INT8 of a user's graph for TensorRT: what it ruins is computed in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.engines import EngineName
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.foreign.graph_precision import Samples
from edgeglm.export.foreign.read.made import write
from edgeglm.export.prove.onnx_run import run_file
from edgeglm.export.targets.base import quantize_step
from edgeglm.export.targets.ranges import calibrated
from tests.export.foreign.small_graphs import graph, node, normal, value


def test_what_int8_ruins_is_computed_in_fp32(tmp_path: Path) -> None:
    """One huge value in each sample takes all steps of the first product, and none of the second."""
    nodes = [node("MatMul", ["x", "w"], ["a"], name="first"), node("Tanh", ["a"], ["t"]),
             node("MatMul", ["t", "v"], ["y"], name="second")]  # fmt: skip
    w = normal(32, 32) * 0.1
    w[0] = 0  # of which the output does not depend
    model = graph(nodes, [value("x", [4, 32])], [value("y", [4, 64])], {"w": w, "v": normal(32, 64)})
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index in range(8):
        x = normal(4, 32)
        x[:, 0] = 3000
        np.savez(tmp_path / f"samples/{index}.npz", x=x)
    request = ExportRequest(
        model=str(tmp_path / "model.onnx"), target="jetson", precision="int8", calibration=tmp_path / "samples",
        output=tmp_path / "bundle",
    )  # fmt: skip

    notes = export(request).notes

    (note,) = [note for note in notes if note.startswith("computed in fp32, most to blame first: first (MatMul)")]
    assert note.endswith("the error was 1; 33% of its operations are theirs")
    module = read_sealed(tmp_path / "bundle").modules[0]
    assert module.fp32_values == ("first (MatMul)",)
    assert module.max_relative_error is not None
    assert module.max_relative_error < 0.05
    operators = [node.op_type for node in ir.load(tmp_path / "bundle/graph/model.onnx").graph]
    assert operators.index("MatMul") < operators.index("QuantizeLinear")  # the first takes x as it is


@pytest.mark.parametrize("engine", ["tensorrt", "qnn"])
def test_an_input_that_is_an_output_is_handed_through(engine: EngineName, tmp_path: Path) -> None:
    """ONNX Runtime's tool makes a cycle of it."""
    nodes = [node("Conv", ["x", "w"], ["y"], name="conv")]
    outputs = [value("x", [1, 2, 4, 4]), value("y", [1, 2, 2, 2])]
    onnx.save(graph(nodes, outputs[:1], outputs, {"w": normal(2, 2, 3, 3)}), tmp_path / "model.onnx")
    x = normal(1, 2, 4, 4)
    write(tmp_path / "0.npz", {"x": x})
    made = quantize_step(engine).quantizer(tmp_path / "model.onnx", Samples(tmp_path), "int8", floats=False)
    next(iter(made.forms.values()))(tmp_path / "made.onnx", [])
    want, got = (run_file(tmp_path / file, {"x": x}) for file in ("model.onnx", "made.onnx"))
    assert list(got) == ["x", "y"]
    assert np.array_equal(got["x"], x)
    assert np.abs(got["y"] - want["y"]).max() < 0.3


def test_ranges_are_of_all_samples(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    model = graph(nodes, [value("x", [1, 2])], [value("y", [1, 1])], {"w": np.array([[1], [-2]], np.float32)})
    onnx.save(model, tmp_path / "model.onnx")
    for index, x in enumerate(([1.0, 4.0], [3.0, -1.0])):
        write(tmp_path / f"{index}.npz", {"x": np.array([x], np.float32)})
    found = calibrated(tmp_path / "model.onnx", ("MatMul",), Samples(tmp_path))
    assert {name: found[name].range_value for name in ("r", "y")} == {"r": (0, 4), "y": (-7, 3)}
