"""Places of an image are no parts of an output that are judged apart; columns of a table are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxscript")

from edgeglm.export.foreign.measure.difference import Comparison
from edgeglm.export.foreign.measure.places import places_of
from tests.export.foreign.small_graphs import Weights, graph, node, normal, value

CONV = node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
FORMS = {
    "map": ([node("Sigmoid", ["c"], ["y"])], {2, 3}),
    "scaled": ([node("Mul", ["c", "k"], ["s"]), node("Add", ["s", "c"], ["y"])], {2, 3}),
    "channels last": ([node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1])], {1, 2}),
    "classes": ([node("Softmax", ["c"], ["y"], axis=1)], {2, 3}),
    "over columns": ([node("Softmax", ["c"], ["y"])], {2}),
    "two heads": ([node("Relu", ["c"], ["r"]), node("Concat", ["c", "r"], ["y"], axis=1)], {2, 3}),
    "larger": ([node("ConvTranspose", ["c", "u"], ["t"], strides=[2, 2]), node("Clip", ["t"], ["y"])], {2, 3}),
    "a table": ([node("Reshape", ["c", "rows"], ["y"])], set()),
    "a product of columns": ([node("MatMul", ["c", "m"], ["y"])], set()),
    "a row for a place": ([node("Add", ["c", "r5"], ["y"])], set()),
}


def places(tmp_path: Path, nodes: list[onnx.NodeProto]) -> set[int]:
    weights: Weights = {"w": normal(4, 4, 3, 3), "k": np.float32(2), "u": normal(4, 4, 2, 2), "m": normal(8, 8),
                        "rows": np.array([1, 16, 8, 4]), "r5": normal(2, 1, 4, 8, 8)}  # fmt: skip
    output = onnx.ValueInfoProto(name="y", type=onnx.TypeProto())
    onnx.save(graph([CONV, *nodes], [value("x", [1, 4, 8, 8])], [output], weights), tmp_path / "model.onnx")
    return set(places_of(tmp_path / "model.onnx").get("y", ()))


@pytest.mark.parametrize("form", FORMS)
def test_places_are_followed_from_the_convolution(form: str, tmp_path: Path) -> None:
    nodes, wanted = FORMS[form]
    assert places(tmp_path, nodes) == wanted


def test_a_map_is_not_judged_by_a_column_where_nothing_is() -> None:
    """Of a detector of text: a column of 1e-5 may be 2e-5, and a column of a table may not."""
    want, got = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 8, 8), np.float32)
    want[..., 0], got[..., 0] = 1e-5, 2e-5
    errors = []
    for axes in ({2, 3}, ()):
        comparison = Comparison({"y": axes})
        comparison.add({"y": want}, {"y": got})
        (difference,) = comparison.differences()
        errors.append(difference.error)
    assert errors == pytest.approx([4e-6, 1], abs=1e-5)
