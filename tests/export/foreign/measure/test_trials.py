"""Ranges of values over samples, and forms that are measured on samples that gave no range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.export.calibrate.histogram import min_max
from edgeglm.export.foreign.measure.trials import LEAST, MOST, PRODUCTS, Trials, affordable, make_folds, observe
from edgeglm.export.foreign.quantize.forms import Form, error_over
from edgeglm.export.foreign.quantize.integers import Recipe, quantize
from edgeglm.export.foreign.read.made import write
from tests.export.foreign.small_graphs import graph, node, normal, value, written


def test_ranges_are_of_all_samples_and_of_what_is_finite(tmp_path: Path) -> None:
    nodes = [node("Div", ["x", "w"], ["a"]), node("Abs", ["a"], ["y"])]
    model = ir.from_proto(graph(nodes, [value("x", [4])], [value("y", [4])], {"w": np.array([1, 1, 1, 0], np.float32)}))
    seen = observe(
        model, ["x", "a"], written(tmp_path, *(np.full(4, size, np.float32) for size in (-2.0, 3.0))), tmp_path
    )
    assert {name: (values.low, values.high) for name, values in seen.items()} == {"x": (-2, 3), "a": (-2, 3)}


def test_halves_of_the_samples_measure_each_other(tmp_path: Path) -> None:
    """A value of one half alone is clipped where the other half gave the ranges."""
    nodes = [node("MatMul", ["x", "w"], ["y"], name="product")]
    onnx.save(graph(nodes, [value("x", [1, 8])], [value("y", [1, 8])], {"w": normal(8, 8)}), tmp_path / "model.onnx")
    model = ir.load(tmp_path / "model.onnx")
    for folder, indices in (("samples", (0, 1, 2)), ("held", (3,))):
        (tmp_path / folder).mkdir()
        for index in indices:
            write(tmp_path / f"{folder}/{index}.npz", {"x": np.full((1, 8), 100.0 if index == 1 else 1.0, np.float32)})
    seen, folds = make_folds(
        lambda files: observe(model, ["x"], files, tmp_path), tmp_path / "model.onnx", tmp_path / "samples",
        tmp_path / "held", tmp_path,
    )  # fmt: skip
    assert [fold.seen.ranges(min_max)["x"][1] for fold in folds] == [1, 100]
    assert [[file.name for file, _ in fold.trials.pairs] for fold in folds] == [["1.npz", "3.npz"], ["0.npz", "2.npz"]]
    assert seen.histograms["x"].counts.sum() == 24
    assert error_over(folds, lambda recipe: quantize(model, recipe))(Form("", Recipe("static", {}))) > 0.9


@pytest.mark.parametrize(("products", "samples"), [(0, MOST), (PRODUCTS // 8, 8), (PRODUCTS, LEAST)])
def test_a_graph_of_many_products_is_measured_on_fewer_samples(products: int, samples: int, tmp_path: Path) -> None:
    """A detector of text on pages takes a second a run, and a choice between forms some hundred runs of a sample."""
    onnx.save(graph([node("Neg", ["x"], ["y"])], [value("x", [1, 8])], [value("y", [1, 8])]), tmp_path / "model.onnx")
    files = written(tmp_path, *(normal(1, 8) for _ in range(40)))
    assert affordable(products) == samples
    pairs = Trials.of(tmp_path / "model.onnx", files, tmp_path, affordable(products)).pairs
    assert samples // 2 < len(pairs) <= samples
