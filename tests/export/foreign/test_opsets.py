"""Graphs of every opset and IR version that ONNX Runtime runs, with operators in the form of each opset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("onnxscript")

from edgeglm.devices.loader import load_profile
from edgeglm.export.foreign import convert, graph_precision
from edgeglm.export.foreign.graph_bundle import export_graph
from edgeglm.export.foreign.plan.graph_plan import GraphRequest, open_graph
from edgeglm.export.foreign.read.quiet import quiet
from edgeglm.export.prove.onnx_run import check_loads, run_file
from tests.export.foreign import small_graphs
from tests.export.foreign.small_graphs import Arrays, Weights, graph, node, normal, value, written

# The newest that ONNX Runtime of `constraints.txt` runs.
OPSETS, VERSIONS = range(7, 27), range(3, 14)
PAIRS = [(opset, VERSIONS[index % len(VERSIONS)]) for index, opset in enumerate(OPSETS)]


class Nodes:
    """Nodes, one behind the other, with their weights."""

    def __init__(self, opset: int, *first: str) -> None:
        self.opset, self.made, self.weights, self.last = opset, list[onnx.NodeProto](), Weights(), first[0]

    def add(self, operator: str, *weights: np.ndarray | np.generic | None, **attributes: Any) -> None:  # noqa: ANN401
        """Put an operator behind the last value; its weights are its further inputs."""
        names = [f"{operator}{len(self.made)}.{index}" for index in range(len(weights))]
        inputs = ["" if weight is None else name for name, weight in zip(names, weights, strict=True)]
        self.weights |= {name: weight for name, weight in zip(names, weights, strict=True) if weight is not None}
        output = f"v{len(self.made)}"
        self.made.append(node(operator, [self.last, *inputs], [output], **attributes))
        self.last = output

    def add_sized(self, since: int, operator: str, **sizes: Sequence[int]) -> None:
        """Put an operator whose sizes are attributes below an opset, and inputs from it on."""
        if self.opset < since:
            self.add(operator, **sizes)
        else:
            self.add(operator, *map(np.array, sizes.values()))

    def enlarge(self) -> None:
        """Double the size of an image."""
        scales = np.array([1, 1, 2, 2], np.float32)
        if self.opset < 9:
            self.add("Upsample", mode="nearest", scales=scales.tolist())
        elif self.opset < 11:
            self.add("Upsample" if self.opset < 10 else "Resize", scales, mode="nearest")
        else:
            roi = np.zeros(8, np.float32) if self.opset < 13 else None
            form = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            self.add("Resize", roi, scales, mode="nearest", **form)

    def drop_out(self) -> None:
        """Put a Dropout, which does nothing."""
        if self.opset < 12:
            self.add("Dropout", ratio=0.3)
        else:
            self.add("Dropout", np.float32(0.3))

    def clip(self) -> None:
        """Keep values from 0 to 2."""
        if self.opset < 11:
            self.add("Clip", min=0.0, max=2.0)
        else:
            self.add("Clip", np.float32(0), np.float32(2))


def model_of(opset: int, version: int) -> onnx.ModelProto:
    """Return a classifier of images, with weights among its inputs where the version has no others."""
    nodes = Nodes(opset, "x")
    nodes.add("Conv", normal(6, 3, 3, 3, scale=0.3), normal(6), pads=[1, 1, 1, 1])
    nodes.add("BatchNormalization", normal(6) + 1, normal(6), normal(6), np.abs(normal(6)) + 0.5, epsilon=1e-4)
    nodes.add("Relu")
    nodes.add_sized(11, "Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    nodes.add_sized(10, "Slice", starts=[0, 0, 1, 1], ends=[1, 6, 7, 7])
    nodes.enlarge()
    nodes.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    nodes.clip()
    nodes.add_sized(13, "Unsqueeze", axes=[1])
    nodes.add_sized(13, "Squeeze", axes=[1])
    nodes.add("Reshape", np.array([1, -1]))
    nodes.add("Gemm", normal(6 * 36, 16, scale=0.1), normal(16))
    nodes.drop_out()
    nodes.add("Relu")
    nodes.add("MatMul", normal(16, 4, scale=0.3))
    nodes.add_sized(18, "ReduceMean", axes=[0])
    nodes.add("Softmax", axis=1)
    named = [(name, np.asarray(array)) for name, array in nodes.weights.items()] if version < 4 else []
    inputs = [value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in named]
    image, last = value("x", [1, 3, 8, 8]), value(nodes.last, [1, 4])
    return graph(nodes.made, [image, *inputs], [last], nodes.weights, opset=opset, ir=version)


def check_export(file: Path, samples: Sequence[Path], sample: Arrays, precision: str, limit: float) -> None:
    """Export a graph, and compare it with ONNX Runtime on the original."""
    work = file.parent / f"work-{precision}"
    work.mkdir()
    request = GraphRequest(file, load_profile("cpu"), precision, samples[0].parent)
    with quiet():
        plan = open_graph(request, 8 << 30, work)
        made, fixes, _ = export_graph(plan, file.parent / precision, work, lambda stage, done: None)
    assert not fixes
    assert made.modules[0].precision == precision
    (want,), (got,) = (run_file(path, sample).values() for path in (file, file.parent / precision / "graph/model.onnx"))
    assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want)


@pytest.mark.parametrize(("opset", "version"), PAIRS)
def test_graphs_of_every_opset_and_version_compute_the_same(
    opset: int, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_graphs, "RANDOM", np.random.default_rng(0))  # the same weights and samples in each
    monkeypatch.setattr(convert, "convert", graph_precision.make)  # without a process for each
    onnx.save(model_of(opset, version), tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    samples = written(tmp_path / "samples", *(normal(1, 3, 8, 8) for _ in range(4)))
    for precision, limit in (("fp32", 1e-6), ("int8", 0.1)):
        check_export(tmp_path / "model.onnx", samples, {"x": normal(1, 3, 8, 8)}, precision, limit)


def test_the_newest_opset_and_version_that_the_engine_runs_are_tried(tmp_path: Path) -> None:
    for opset, version in ((OPSETS[-1] + 1, VERSIONS[0]), (OPSETS[-1], VERSIONS[-1] + 1)):
        onnx.save(model_of(opset, version), tmp_path / "model.onnx")
        with pytest.raises(Exception, match=r"opset|IR version"):
            check_loads(tmp_path / "model.onnx")
