"""Outputs as they are before the last Relu or Clip: in every form of a cut, and behind what passes values on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxscript")

from onnx import TensorProto

from edgeglm.bundle import read_sealed
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.foreign.measure.clamps import BEFORE, give_before_clamps, reach_of
from edgeglm.export.foreign.measure.difference import Comparison
from edgeglm.export.prove.onnx_run import opened
from tests.export.foreign.small_graphs import Weights, graph, node, normal, value

RANDOM = np.random.default_rng(0)
LOW, HIGH = np.float32(0), np.float32(6)
CUT = {
    "relu": [node("Relu", ["m"], ["y"])],
    "clip": [node("Clip", ["m", "low", "high"], ["y"])],
    "max": [node("Max", ["low", "m"], ["y"])],
    "constant": [node("Constant", [], ["c"], value_float=0.0), node("Max", ["m", "c"], ["y"])],
    "twice": [node("Max", ["m", "low"], ["a"]), node("Flatten", ["a"], ["y"])],
    "moved": [node("Relu", ["m"], ["a"]), node("Transpose", ["a"], ["b"]), node("Transpose", ["b"], ["y"])],
}
WEIGHTS: Weights = {
    "low": LOW, "high": HIGH, "yes": np.array(True), "three": np.array(3), "zeros": np.zeros(8, np.float32)
}  # fmt: skip


def uncut(nodes: list[onnx.NodeProto], outputs: list[str]) -> dict[str, np.ndarray]:
    """Return the outputs before their clamps for x, and x times the weights as m."""
    model = graph([node("MatMul", ["x", "w"], ["m"]), *nodes], [value("x", [2, 8])],
                  [onnx.ValueInfoProto(name=name) for name in (*outputs, "m")],
                  {**WEIGHTS, "w": normal(8, 8)})  # fmt: skip
    names = give_before_clamps(model.graph)
    model.graph.output.append(onnx.ValueInfoProto(name="m"))
    run = opened(Path(), model.SerializeToString())({"x": normal(2, 8)})
    return {**{name: run[before] for name, before in names.items()}, "m": run["m"]}


@pytest.mark.parametrize("form", CUT)
def test_a_cut_is_taken_away(form: str) -> None:
    made = uncut(CUT[form], ["y"])
    assert (made["m"] < 0).any()
    assert np.array_equal(made["y"], made["m"])


def test_a_hard_sigmoid_keeps_its_slope() -> None:
    made = uncut([node("HardSigmoid", ["m"], ["y"], alpha=0.5)], ["y"])
    assert np.allclose(made["y"], made["m"] * 0.5)


def test_what_is_joined_and_scaled_is_uncut_in_its_place() -> None:
    nodes = [
        node("Relu", ["m"], ["a"]),
        node("Split", ["a"], ["b", "c"], axis=1),
        node("Mul", ["c", "high"], ["d"]),
        node("Sigmoid", ["m"], ["e"]),
        node("Concat", ["d", "e", "b"], ["y"], axis=1),
    ]
    made = uncut(nodes, ["y"])
    m = made["m"]
    assert np.allclose(made["y"], np.concatenate([m[:, 4:] * 6, 1 / (1 + np.exp(-m)), m[:, :4]], 1), atol=1e-6)


def test_only_the_last_cut_is_taken_away() -> None:
    nodes = [node("Relu", ["m"], ["a"]), node("MatMul", ["a", "w"], ["b"]), node("Relu", ["b"], ["y"])]
    made = uncut(nodes, ["a", "y"])
    assert np.array_equal(made["a"], made["m"])
    assert (made["y"] < 0).any()


def test_a_graph_without_a_cut_has_none(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Sigmoid", ["a"], ["y"])]
    onnx.save(graph(nodes, [value("x", [2, 8])], [value("y", [2, 8])]), tmp_path / "model.onnx")
    assert reach_of(tmp_path / "model.onnx", [], {}) is None


def body(
    name: str, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]
) -> onnx.GraphProto:
    """Return a body."""
    return onnx.helper.make_graph(nodes, name, inputs, [onnx.ValueInfoProto(name=output) for output in outputs])


def in_if() -> list[onnx.NodeProto]:
    """Return branches that both cut m, and pass it on."""
    branches = {}
    for name in ("then", "else"):
        nodes = [node("Relu", ["m"], [f"{name}.a"]), node("Flatten", [f"{name}.a"], [name])]
        branches[f"{name}_branch"] = body(name, nodes, [], [name])
    return [node("If", ["yes"], ["y"], **branches)]


def in_loop(given: str) -> list[onnx.NodeProto]:
    """Return three rounds that carry a and give b, both cut in the body."""
    inputs = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("s", [2, 8])]
    nodes = [node("Identity", ["go"], ["on"]), node("Relu", ["m"], ["a"]), node("Clip", ["m", "low", "high"], ["b"])]
    outputs = ["last", "y"] if given == "b" else ["y", "each"]
    return [node("Loop", ["three", "", "m"], outputs, body=body("round", nodes, inputs, ["on", "a", "b"]))]


def in_scan(given: str) -> list[onnx.NodeProto]:
    """Return the rows of m, of which the last is carried, and all are given in columns."""
    inputs = [value("s", [8]), value("row", [8])]
    nodes = [node("Relu", ["row"], ["a"]), node("Relu", ["row"], ["b"])]
    outputs = ["last", "y"] if given == "b" else ["y", "each"]
    rounds = body("round", nodes, inputs, ["a", "b"])
    return [node("Scan", ["zeros", "m"], outputs, body=rounds, num_scan_inputs=1, scan_output_axes=[1])]


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        (in_if(), lambda m: m),
        (in_loop("a"), lambda m: m),
        (in_loop("b"), lambda m: np.stack([m] * 3)),
        (in_scan("a"), lambda m: m[1]),
        (in_scan("b"), lambda m: m.T),
    ],
    ids=["if", "loop, carried", "loop", "scan, carried", "scan"],
)
def test_a_cut_in_a_body_is_taken_away(nodes: list[onnx.NodeProto], wanted: Callable[[np.ndarray], np.ndarray]) -> None:
    made = uncut(nodes, ["y"])
    assert (made["m"] < 0).any()
    assert np.array_equal(made["y"], wanted(made["m"]))


def test_a_body_without_a_cut_has_none() -> None:
    branches = {f"{name}_branch": body(name, [node("Tanh", ["x"], [name])], [], [name]) for name in ("then", "else")}
    model = graph([node("If", ["c"], ["y"], **branches)], [value("x", [2, 8]), value("c", [], TensorProto.BOOL)],
                  [value("y", [2, 8])])  # fmt: skip
    assert give_before_clamps(model.graph) == {}


def test_a_cut_in_a_function_is_taken_away(tmp_path: Path) -> None:
    opsets = [onnx.helper.make_opsetid("", 17)]
    function = onnx.helper.make_function("own", "Cut", ["a"], ["b"], [node("Relu", ["a"], ["b"])], opsets)
    model = graph([node("Cut", ["x"], ["y"], domain="own")], [value("x", [2, 8])], [value("y", [2, 8])],
                  domains=["own"])  # fmt: skip
    model.functions.append(function)
    onnx.save(model, tmp_path / "model.onnx")
    x = normal(2, 8)
    found, wanted = reach_of(tmp_path / "model.onnx", [{"x": x}], {}), Comparison()
    assert found is not None
    wanted.add({"y": x}, {"y": x})
    assert found._outputs["y"].samples == wanted._outputs["y"].samples


def test_barely_active_channels_do_not_refuse_int8(tmp_path: Path) -> None:
    """Of 16 channels, one value of four is above zero by a thousandth of their range."""
    weights = {"w": normal(16, 32, scale=0.25), "v": normal(32, 48, scale=0.2), "b": np.zeros(48, np.float32)}
    samples = [normal(1, 16) for _ in range(16)]
    before = np.concatenate([np.maximum(sample @ weights["w"], 0) @ weights["v"] for sample in samples[3::4]])
    weights["b"][:16] = 0.002 - before.max(0)[:16]
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["h"]),
        node("Gemm", ["h", "v", "b"], ["c"]),
        node("Relu", ["c"], ["y"]),
    ]
    onnx.save(graph(nodes, [value("x", [1, 16])], [value("y", [1, 48])], weights), tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index, sample in enumerate(samples):
        np.savez(tmp_path / f"samples/{index:02}.npz", x=sample)
    made = export(
        ExportRequest(model=str(tmp_path / "model.onnx"), target="cpu", precision="int8",
                      calibration=tmp_path / "samples", output=tmp_path / "bundle")
    )  # fmt: skip
    (module,) = read_sealed(tmp_path / "bundle").modules
    assert module.max_relative_error is not None
    assert module.max_relative_error < 0.1
    assert not module.fp32_values
    assert all("away" not in note for note in made.notes)


def test_what_is_copied_has_names_of_its_own() -> None:
    model = graph([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"])], [value("x", [2])], [value("y", [2])])
    assert give_before_clamps(model.graph) == {"y": f"y{BEFORE}"}
