"""Identities are taken out, but where an output would lose its name or its graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.export.foreign.normalize.identities import pass_identities
from edgeglm.export.foreign.normalize.tidy import load_model
from edgeglm.export.prove.onnx_run import opened
from tests.export.foreign.small_graphs import graph, node, value

X, SIZE = [value("x", [4])], [4]
FEED = {"x": np.array([-1, 2, -3, 4], np.float32)}


def same(model: onnx.ModelProto, feeds: dict[str, np.ndarray], operators: Sequence[str]) -> None:
    """Expect the same outputs by name, and these operators in the main graph."""
    made = load_model(model, {})
    want, got = (
        opened(Path(), each.SerializeToString())(feeds) for each in (model, ir.to_proto(made))
    )  # fmt: skip
    assert list(want) == list(got)
    assert all(np.array_equal(want[name], got[name]) for name in want)
    assert [each.op_type for each in made.graph] == operators


@pytest.mark.parametrize(
    ("nodes", "outputs", "operators"),
    [
        ([node("Identity", ["x"], ["i"]), node("Relu", ["i"], ["y"])], ["y"], ["Relu"]),
        ([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"])], ["y"], ["Relu"]),
        ([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"])], ["a", "y"], ["Relu", "Identity"]),
        ([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"]), node("Identity", ["a"], ["z"])], ["z", "y"],
         ["Relu", "Identity"]),
        ([node("Identity", ["x"], ["y"])], ["y"], ["Identity"]),
        ([node("Identity", ["w"], ["y"]), node("Relu", ["x"], ["z"])], ["y", "z"], ["Identity", "Relu"]),
    ],
)  # fmt: skip
def test_outputs_keep_their_names(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], operators: Sequence[str]
) -> None:
    weights = {"w": np.ones(4, np.float32)} if any("w" in each.input for each in nodes) else {}
    same(graph(nodes, X, [value(name, SIZE) for name in outputs], weights), FEED, operators)


@pytest.mark.parametrize("yes", [True, False])
def test_a_branch_may_give_a_value_from_outside(yes: bool) -> None:
    then = onnx.helper.make_graph([node("Identity", ["a"], ["t"])], "then", [], [value("t", SIZE)])
    other = onnx.helper.make_graph([node("Neg", ["a"], ["e"])], "else", [], [value("e", SIZE)])
    nodes = [node("Relu", ["x"], ["a"]), node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    model = graph(nodes, [*X, value("c", [], onnx.TensorProto.BOOL)], [value("y", SIZE)])
    same(model, {**FEED, "c": np.array(yes)}, ["Relu", "If"])


def test_a_scan_may_give_a_value_twice() -> None:
    body = onnx.helper.make_graph(
        [node("Add", ["s", "r"], ["t"]), node("Identity", ["t"], ["o"])], "body",
        [value("s", []), value("r", [])], [value("t", []), value("o", [])],
    )  # fmt: skip
    nodes = [node("Scan", ["zero", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    same(graph(nodes, X, [value("y", SIZE)], {"zero": np.array(0, np.float32)}), FEED, ["Scan"])


def test_a_chain_of_them_is_one_value() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"]), node("Identity", ["b"], ["y"])]
    model = ir.from_proto(graph(nodes, X, [value("y", SIZE)]))
    pass_identities(model)
    assert [each.op_type for each in model.graph] == ["Relu"]
    assert model.graph.outputs[0].name == "y"
