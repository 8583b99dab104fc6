"""A conversion says how far it is, as choosing among forms of INT8 may take minutes; on a CPU it leaves masks alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxscript")

from edgeglm.export.api import ExportRequest, Progress, export
from tests.export.foreign.small_graphs import Weights, graph, node, normal, value


def test_a_conversion_says_how_far_it_is(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w"], ["y"])]
    onnx.save(graph(nodes, [value("x", [4, 8])], [value("y", [4, 8])], {"w": normal(8, 8)}), tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index in range(4):
        np.savez(tmp_path / f"samples/{index}.npz", x=normal(4, 8))
    seen = list[Progress]()
    request = ExportRequest(
        model=str(tmp_path / "model.onnx"), target="cpu", precision="int8", calibration=tmp_path / "samples",
        output=tmp_path / "bundle",
    )  # fmt: skip
    export(request, seen.append)
    assert [progress.stage for progress in seen if progress.done is None] == [
        "checking", "converting to int8", "measuring",
    ]  # fmt: skip
    shares = [progress.done for progress in seen if progress.done is not None]
    assert len(shares) > 4
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


def test_int8_on_a_cpu_leaves_what_masks_scores(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "low"], ["scores"]),
        node("Where", ["kept", "scores", "hidden"], ["masked"]), node("Softmax", ["masked"], ["y"]),
    ]  # fmt: skip
    weights: Weights = {"w": normal(8, 64), "low": np.float32(-100), "hidden": np.float32(-np.inf)}
    inputs = [value("x", [4, 8]), value("kept", [4, 64], onnx.TensorProto.BOOL)]
    onnx.save(graph(nodes, inputs, [value("masked", [4, 64]), value("y", [4, 64])], weights), tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index in range(4):
        np.savez(tmp_path / f"samples/{index}.npz", x=normal(4, 8), kept=normal(4, 64) > 0)
    request = ExportRequest(
        model=str(tmp_path / "model.onnx"), target="cpu", precision="int8", calibration=tmp_path / "samples",
        output=tmp_path / "bundle",
    )  # fmt: skip
    (module,) = export(request).manifest.modules
    assert module.max_relative_error is not None
    assert module.max_relative_error < 0.05
