"""Programs of torch.export, plans of graphs, and the way on from files that are neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import numpy as np
import onnx

from edgeglm.bundle import read_sealed
from edgeglm.export.foreign.plan.graph_forecast import NO_CONTEXT
from edgeglm.export.foreign.read.program import _reason
from edgeglm.export.foreign.read.program_worker import distance
from edgeglm.manifest import GraphManifest
from edgeglm.runtimes.engines.ort.options import open_session
from edgeglm.worker import Crashed
from tests.cli.commands import check_failure, run
from tests.export.foreign.small_graphs import X, Y, graph, node, normal, value
from tests.export.user_graphs import IMAGE, Cnn

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program over any number of images."""
    file = tmp_path_factory.mktemp("program") / "cnn.pt2"
    torch.manual_seed(0)
    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(Cnn().eval(), (torch.randn(2, *IMAGE),), dynamic_shapes=shapes), file)
    return file


@pytest.mark.slow
def test_a_program_becomes_a_bundle_that_computes_the_same(program: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ("--target", "cpu", "--precision", "fp32", "-o", tmp_path / "out", "--json")
    status, _, err = run(capsys, "export", program, *options)
    assert status == 0, err
    assert "note: converted by the exporter of torch" in err
    manifest = read_sealed(tmp_path / "out")
    assert isinstance(manifest, GraphManifest)
    assert manifest.graph.name == "cnn"
    assert "torch" in manifest.provenance.versions
    images = np.random.default_rng(0).standard_normal((3, *IMAGE), np.float32)
    session = open_session(tmp_path / "out/graph/model.onnx", 1)
    got = session.run(None, {session.get_inputs()[0].name: images})[0]
    with torch.no_grad():
        want = torch.export.load(program).module()(torch.from_numpy(images)).numpy()
    assert np.abs(got - want).max() < 1e-5


def test_a_graph_that_computes_something_else_is_far() -> None:
    ones = np.ones(4, np.float32)
    assert distance(ones, ones) == 0
    assert distance(ones, ones * 1.5) == pytest.approx(0.5)
    assert distance(ones, np.ones(5, np.float32)) == np.inf
    masked = np.array([1, np.nan, -np.inf], np.float32)
    assert distance(masked, masked) == 0
    assert not distance(masked, np.ones(3, np.float32)) <= 1


class Numbered(torch.nn.Module):  # type: ignore[name-defined, misc]
    """A module that gives a size and a number beside its tensor."""

    def __init__(self, more: int | None) -> None:
        super().__init__()
        self.cnn, self.more = Cnn(), more

    def forward(self, image: Any) -> tuple[Any, int, int | None]:  # noqa: ANN401
        """Return the tensor, the size of the batch, and the number."""
        return self.cnn(image), image.shape[0], self.more


@pytest.mark.slow
def test_a_size_is_an_output_and_a_number_is_named(tmp_path: Path, capsys: Capture) -> None:
    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=64)}}
    options = ("--target", "cpu", "--precision", "fp32", "-o", tmp_path / "out")
    for more, status, line in ((3, 3, "its output 3 is 3, int of Python and no tensor; leave it out"), (None, 0, "")):
        made = torch.export.export(Numbered(more).eval(), (torch.randn(2, *IMAGE),), dynamic_shapes=shapes)
        torch.export.save(made, tmp_path / "m.pt2")
        done = run(capsys, "export", tmp_path / "m.pt2", *options)
        assert (done[0], line in done[2]) == (status, True), done[2]


def test_the_cause_is_told_and_not_that_there_is_one() -> None:
    cause = "torch._errors.SerializeError: Unable to deserialize output a"
    vague = "RuntimeError: We ran into an error when deserializing the saved file."
    logged = f"W1130 14:59:33.346000 25004 /torch/export/__init__.py:348] {cause}"
    assert _reason(Crashed(1, [logged, vague])) == cause
    assert _reason(Crashed(1, [vague])) == vague


def test_the_way_on_from_other_files_is_one_line(program: Path, tmp_path: Path, capsys: Capture) -> None:
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(program.read_bytes()[:1000])
    for name in ("model.pt", "model.tflite", "model.h5"):
        (tmp_path / name).write_bytes(b"anything")
    weights = tmp_path / "weights.pt2"
    torch.save({"w": torch.zeros(2)}, weights)
    for file, status, why in (
        (tmp_path / "model.pt", 2, r"weights or TorchScript; .*torch\.export\.save as \.pt2"),
        (tmp_path / "model.tflite", 2, "LiteRT runs as it is"),
        (tmp_path / "model.h5", 2, "of TensorFlow; export it to .onnx"),
        (tmp_path / "missing.pt2", 2, "cannot be read: No such file"),
        (weights, 2, r"holds no program .*; save it again"),
        (cut, 6, "is cut off"),
    ):
        done = run(capsys, "export", file, "--target", "cpu", "--precision", "fp32", "-o", tmp_path / "out")
        check_failure(done, status, why)


@pytest.mark.parametrize("option", ["--format=tflite", "--no-resume", "--context=5", "--image-size=8x8"])
def test_options_that_do_nothing_for_a_graph_are_refused(option: str, tmp_path: Path, capsys: Capture) -> None:
    onnx.save(graph([node("Relu", ["x"], ["y"])], X, Y), tmp_path / "g.onnx")
    done = run(capsys, "export", tmp_path / "g.onnx", "--target", "cpu", "--precision", "fp32", option)
    check_failure(done, 2, option.partition("=")[0])


def test_a_graph_is_planned(tmp_path: Path, capsys: Capture) -> None:
    weight = normal(512, 512)
    product = node("MatMul", ["x", "w"], ["y"], name="product")
    model = graph([product], [value("x", ["n", 512])], [value("y", ["n", 512])], {"w": weight})
    onnx.save(model, tmp_path / "g.onnx")
    status, out, err = run(capsys, "plan", tmp_path / "g.onnx", "--target", "cpu", "--precision", "fp32", "--json")
    assert status == 0, err
    plan = json.loads(out)
    sizes = {option["precision"]: option["bundle_bytes"] for option in plan["precisions"]}
    assert list(sizes) == ["fp32", "fp16", "int8", "int4"]
    assert weight.nbytes < plan["bundle_bytes"] == sizes["fp32"] < 1.01 * weight.nbytes
    assert weight.nbytes / 8 < sizes["int4"] < sizes["int8"] / 1.7
    assert weight.nbytes / 4 < sizes["int8"] < sizes["fp16"] < 0.51 * weight.nbytes
    assert plan["fits"] is True
    assert list(plan["device_peak_rss_bytes"]) == [str(NO_CONTEXT)]
    model.graph.node[0].op_type = "Twirl"
    onnx.save(model, tmp_path / "g.onnx")
    status, out, err = run(capsys, "plan", tmp_path / "g.onnx", "--target", "cpu", "--json")
    assert status == 0, err
    (blocker,) = json.loads(out)["blockers"]
    assert "product (Twirl): ONNX Runtime 1.31 does not have the operator" in blocker["reason"]
    assert json.loads(out)["fits"] is False
    done = run(capsys, "plan", tmp_path / "g.onnx", "--target", "cpu", "--context", "5")
    check_failure(done, 2, "--context: is only for checkpoints")
