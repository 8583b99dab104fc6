"""Means of what nodes take, by which a bias makes up for what rounded weights lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.export.foreign.measure.means import COUNTED, LAST, Values
from edgeglm.export.foreign.measure.trials import Seen, observe
from edgeglm.export.foreign.normalize.tidy import name_nodes
from edgeglm.export.foreign.quantize.integers import Recipe, quantize, ranged_values
from edgeglm.export.prove.onnx_run import opened
from tests.export.foreign.small_graphs import graph, node, normal, value, written

IMAGE, ROW = [1, 8, 6, 6], [4, 32]


def layer(form: str) -> onnx.ModelProto:
    if form == "Conv":
        weights = {"w": normal(8, 4, 1, 1), "b": normal(8)}
        shapes, nodes = (IMAGE, IMAGE), [node("Conv", ["x", "w", "b"], ["y"], name="layer", group=2)]
    else:
        shape = (16, 32) if form == "transposed" else (32, 16)
        weights, shapes = {"w": normal(*shape), "b": normal(16)}, (ROW, [4, 16])
        nodes = [node("Gemm", ["x", "w", "b"], ["y"], name="layer", transB=int(form == "transposed"))]
    return graph(nodes, [value("x", shapes[0])], [value("y", shapes[1])], weights)


@pytest.mark.parametrize("form", ["Gemm", "transposed", "Conv"])
@pytest.mark.parametrize("kind", ["static", "dynamic", "stored"])
def test_what_weights_lose_on_average_is_in_the_bias(form: str, kind: str, tmp_path: Path) -> None:
    proto = layer(form)
    model = ir.from_proto(proto)
    name_nodes(model)
    shape = IMAGE if form == "Conv" else ROW
    arrays = [np.abs(normal(*shape)) + 1 for _ in range(8)]
    seen = Seen(observe(model, [f"{one.name}" for one in ranged_values(model)], written(tmp_path, *arrays), tmp_path))
    ranges = seen.ranges(lambda values: (float(values.low), float(values.high)))
    wide = {"layer"} if kind == "stored" else set[str]()
    axes = (0, 2, 3) if form == "Conv" else (0,)

    def lost(means: bool) -> float:
        recipe = Recipe(
            "dynamic" if kind == "dynamic" else "static", ranges, wide=wide, means=seen.means() if means else {}
        )
        runs = (
            opened(Path(), proto.SerializeToString()),
            opened(Path(), ir.to_proto(quantize(model, recipe)).SerializeToString()),
        )
        want, got = (np.mean([run({"x": array})["y"].mean(axes) for array in arrays], 0) for run in runs)
        return float(np.linalg.norm(want - got))

    assert lost(True) < 0.5 * lost(False)


def test_a_mean_that_is_chance_is_none() -> None:
    random = np.random.default_rng(0)
    even, positive, alone = Values(), Values(), Values()
    for _ in range(16):
        array = random.standard_normal((1, 256)).astype(np.float32)
        even.take(array)
        positive.take(np.abs(array))
    alone.take(np.ones((1, 256), np.float32))
    assert np.abs(even.means()[LAST]).max() < 0.2
    assert positive.means()[LAST].mean() == pytest.approx(0.8, rel=0.1)
    assert not alone.means()[LAST].any()


def test_an_axis_of_two_sizes_has_no_mean() -> None:
    values, others = Values(), Values()
    values.take(np.ones((2, 4), np.float32))
    others.take(np.ones((2, 5), np.float32))
    values.merge(others)
    assert not values.means()
    assert values.counts.sum() == 18


def test_of_many_values_some_are_counted_and_the_ends_are_kept() -> None:
    """A channel that is the last axis is counted as often as its neighbours; one value that is far off is not lost."""
    few, many = Values(), Values()
    array = np.tile(np.array([[0.5, -2, 3]], np.float32), (4 * COUNTED, 1))
    array[7, 0] = 100
    for values, rows in ((few, array[: COUNTED // 4]), (many, array)):
        values.take(rows)
        assert (values.low, values.high) == (-2, 100)
        assert values.counts.sum() == pytest.approx(rows.size, rel=1e-4)
        shares = np.sort(values.counts)[-3:] / rows.size
        assert shares == pytest.approx(np.full(3, 1 / 3), abs=0.01)
    assert many.means()[LAST] == pytest.approx(few.means()[LAST], abs=1e-3)
