"""The predicted peak of an export of a graph, beside what a fresh process takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

import subprocess

from edgeglm.export.foreign.measure.activations import kept_groups
from edgeglm.export.foreign.plan.graph_peak import graph_peak, size_of
from edgeglm.runtimes.engines.ort.options import saturates
from tests.export.foreign.small_graphs import graph, node, normal, value

SIZE, CHANNELS = 384, 32
MORE, LESS = 1.05, 0.8  # of the predicted peak, what may be taken; on other machines libraries take less
WITHOUT_VNNI = 1.15  # instead of MORE: other kernels of the engine, which are not predicted (docs/cli.md)


@pytest.mark.slow
def test_the_peak_of_large_activations_is_predicted(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "a"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "b"], ["e"], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["e"], ["y"]),
    ]
    weights = {"a": normal(CHANNELS, 3, 3, 3), "b": normal(CHANNELS, CHANNELS, 3, 3)}
    inputs, outputs = [value("x", [1, 3, SIZE, SIZE])], [value("y", [1, CHANNELS, 1, 1])]
    onnx.save(graph(nodes, inputs, outputs, weights), tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index in range(4):
        np.savez(tmp_path / f"samples/{index}.npz", x=normal(1, 3, SIZE, SIZE))
    command = [sys.executable, "-m", "edgeglm", "export", str(tmp_path / "model.onnx"), "--target", "cpu"]
    options = ["--precision", "int8", "--calibration", str(tmp_path / "samples"), "-o", str(tmp_path / "out"), "--json"]
    made = json.loads(subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True).stdout)
    share = made["peak_rss_bytes"] / made["predicted_peak_rss_bytes"]
    assert LESS <= share <= (WITHOUT_VNNI if saturates() else MORE)


def test_values_that_are_kept_together_take_no_more_than_a_run() -> None:
    """A run that is asked for a value keeps it to its end."""
    names = ["a", "b", "c", "y"]
    nodes = [node("Relu", [taken], [given]) for taken, given in zip(["x", *names], names, strict=False)]
    size = [32 << 20]  # of 128 MiB each, of which two live at once
    model = ir.from_proto(graph(nodes, [value("x", size)], [value("y", size)], {}))
    assert kept_groups(model, names, {"x": size}) == [["a", "b"], ["c", "y"]]


def test_a_sample_waits_while_an_engine_is_built() -> None:
    """TensorRT in a process of its own takes more than the run of a small graph with a large input."""
    peaks = []
    for size in (8, 2048):
        shape = [1, 3, size, size]
        nodes = [node("AveragePool", ["x"], ["a"], kernel_shape=[4, 4], strides=[4, 4]), node("Relu", ["a"], ["y"])]
        model = ir.from_proto(graph(nodes, [value("x", shape)], [value("y", None)], {}))
        peaks.append(graph_peak(size_of(model, {"x": shape}, 0, "fp16", "tensorrt"), "fp16", "tensorrt"))
    assert peaks[1] - peaks[0] == 4 * 3 * (2048**2 - 8**2)
