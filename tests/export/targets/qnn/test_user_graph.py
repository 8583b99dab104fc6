"""A user's graph on an NPU: compiled and simulated, or refused with the node that its compiler or simulator breaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime_qnn", reason="pip install 'edgeglm[qnn]'")
pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.targets.base import graph_step
from edgeglm.manifest import GraphManifest
from tests.export.foreign.small_graphs import graph, node, normal, value

SHAPE = [1, 8, 8, 8]


def exported(folder: Path, *behind: onnx.NodeProto, **weights: np.ndarray) -> GraphManifest:
    """Export a convolution and nodes behind it for the NPU."""
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"), *behind]
    model = graph(nodes, [value("x", SHAPE)], [value("y", [f"d{axis}" for axis in range(4)])],
                  {"w": normal(8, 8, 3, 3, scale=0.15), **weights})  # fmt: skip
    onnx.save(model, folder / "model.onnx")
    (folder / "samples").mkdir()
    for index in range(4):
        np.savez(folder / f"samples/{index}.npz", x=normal(*SHAPE))
    export(
        ExportRequest(
            model=str(folder / "model.onnx"), target="qcs6490", precision="int8", calibration=folder / "samples",
            output=folder / "bundle",
        )
    )  # fmt: skip
    manifest = read_sealed(folder / "bundle")
    assert isinstance(manifest, GraphManifest)
    return manifest


def test_a_graph_is_compiled_and_simulated(tmp_path: Path) -> None:
    (module,) = exported(tmp_path, node("Relu", ["c"], ["y"])).modules
    assert module.engine == "qnn"
    assert module.compiled
    assert (module.compiled.chip, module.compiled.executed_on) == ("QCS6490, Hexagon v68", "HTP simulator")
    assert module.compiled.cosine is not None
    assert module.compiled.cosine >= 0.999
    assert (tmp_path / "bundle" / module.compiled.file).is_file()


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operator is refused before the compiler sees it."""
    for place in ("graph.conform", "foreign.convert"):
        monkeypatch.setattr(f"edgeglm.export.{place}.table_for", lambda profile, engine: None)


REFUSED = {
    "Einsum": (node("Einsum", ["c", "c"], ["y"], equation="bchw,bdhw->bchw", name="last"), {}),
    "Mod": (node("Mod", ["c", "m"], ["y"], fmod=1, name="last"), {"m": np.array(0.7, np.float32)}),
    "ReduceL2": (node("ReduceL2", ["c"], ["y"], axes=[1], name="last"), {}),
    "TopK": (node("TopK", ["c", "k"], ["y", "i"], name="last"), {"k": np.array([3])}),
    "CumSum": (node("CumSum", ["c", "a"], ["y"], name="last"), {"a": np.array(2)}),
}


@pytest.mark.parametrize("operator", REFUSED)
def test_the_table_refuses_what_was_measured(operator: str, tmp_path: Path) -> None:
    behind, weights = REFUSED[operator]
    with pytest.raises(UnsupportedError, match=rf"last \({operator}\): QNN HTP v68 does not have the operator"):
        exported(tmp_path, behind, **weights)


@pytest.mark.usefixtures("no_table")
def test_what_the_compiler_refuses_is_named(tmp_path: Path) -> None:
    behind, weights = REFUSED["TopK"]
    with pytest.raises(UnsupportedError, match=r"has no form on this NPU for last \(TopK\); take it out of the model"):
        exported(tmp_path, behind, **weights)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("no_table")
def test_what_the_simulator_computes_wrong_is_named(tmp_path: Path) -> None:
    """It sums wrong; the nodes before and behind the sum are right."""
    behind = [node("CumSum", ["c", "a"], ["s"], name="sum"), node("Relu", ["s"], ["y"], name="behind")]
    with pytest.raises(AccuracyError, match=r"with a cosine of .*, below 0.999, from sum \(CumSum\) on"):
        exported(tmp_path, *behind, a=np.array(2))


def test_without_the_compiler_nothing_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeglm.export.targets.qnn.compiler.DISTRIBUTION", "no-such-compiler")
    manifest = exported(tmp_path, node("Relu", ["c"], ["y"]))
    assert manifest.proof == "not proven: the NPU's compiler is not installed"
    assert (manifest.modules[0].engine, manifest.modules[0].compiled) == ("ort", None)
    assert graph_step("qnn").SIZED is False
