"""Dynamic products: weights that hold on every x86, biases in the same node, and what few rows change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.export.foreign.measure.activations import operations
from edgeglm.export.foreign.measure.trials import Seen, observe
from edgeglm.export.foreign.quantize.codes import LARGEST_PAIR, encode
from edgeglm.export.foreign.quantize.forms import costs, few_rows, forms_of
from edgeglm.export.foreign.quantize.integers import Recipe, quantize
from edgeglm.export.prove.onnx_run import opened
from tests.export.foreign.quantize.test_int8 import PLAIN_RUN, error
from tests.export.foreign.small_graphs import graph, node, normal, value, written
from tests.haswell import run_on_haswell

WEIGHTS = {"w": normal(64, 32) * 0.1 + 0.2, "b": normal(32)}


def product(kind: str, rows: int = 1) -> ir.Model:
    """Return a product and the sum with a row of numbers, as a Gemm or as two nodes."""
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], name="first")]
    if kind == "MatMul":
        nodes = [node("MatMul", ["x", "w"], ["p"], name="first"), node("Add", ["b", "p"], ["y"])]
    return ir.from_proto(graph(nodes, [value("x", [rows, 64])], [value("y", [rows, 32])], WEIGHTS))


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_bias_is_added_in_the_product(kind: str) -> None:
    model, x = product(kind), np.abs(normal(1, 64))
    made = quantize(model, Recipe("dynamic", {}))
    assert [each.op_type for each in made.graph] == ["DynamicQuantizeMatMul"]
    (got,) = opened(Path(), ir.to_proto(made).SerializeToString())({"x": x}).values()
    assert error(got, x @ WEIGHTS["w"] + WEIGHTS["b"]) < 0.01


def test_a_sum_that_others_take_stays_apart() -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"], name="first"), node("Add", ["p", "b"], ["s"]),
             node("Mul", ["s", "p"], ["y"])]  # fmt: skip
    model = ir.from_proto(graph(nodes, [value("x", [1, 64])], [value("y", [1, 32])], WEIGHTS))
    x = normal(1, 64)
    made = quantize(model, Recipe("dynamic", {}))
    assert [each.op_type for each in made.graph] == ["DynamicQuantizeMatMul", "Add", "Mul"]
    (got,) = opened(Path(), ir.to_proto(made).SerializeToString())({"x": x}).values()
    assert error(got, (x @ WEIGHTS["w"] + WEIGHTS["b"]) * (x @ WEIGHTS["w"])) < 0.03


def test_unsigned_weights_have_all_their_bits_on_every_processor(tmp_path: Path) -> None:
    """With all activations and weights large, pairs of signed ones would saturate without VNNI."""
    model = product("MatMul")
    file, sample = tmp_path / "model.onnx", tmp_path / "0.npz"
    x = (np.random.default_rng(0).random((1, 64)) * 0.1 + 0.9).astype(np.float32)
    np.savez(sample, x=x)
    made = quantize(model, Recipe("dynamic", {}, unsigned=["first"]))
    assert made.graph.initializers["first.codes"].dtype == ir.DataType.UINT8
    ir.save(made, file)
    script = tmp_path / "run.py"
    script.write_text(PLAIN_RUN)
    (there,) = json.loads(run_on_haswell(script, file, sample))
    (here,) = opened(file)({"x": x}).values()
    held = opened(Path(), ir.to_proto(quantize(model, Recipe("dynamic", {}))).SerializeToString())({"x": x})["y"]
    want = x @ WEIGHTS["w"] + WEIGHTS["b"]
    assert np.allclose(there, here, rtol=1e-5)
    assert error(np.array(there), want) < error(held, want)


def test_neighbours_begin_at_even_places() -> None:
    """A pair of weights that no kernel adds takes no precision; one that it adds does."""
    apart, together = np.zeros((2, 6, 1), np.float32)
    apart[1:3], together[2:4] = 1, 1
    assert encode(apart, 1, pairs_along=0, even=True).codes.max() == 127
    assert encode(apart, 1, pairs_along=0).codes.max() == LARGEST_PAIR // 2
    assert encode(together, 1, pairs_along=0, even=True).codes.max() == LARGEST_PAIR // 2


@pytest.mark.parametrize(("rows", "names"), [(1, {"first"}), (2, {"first"}), (16, {"first"}), (64, set[str]())])
def test_few_rows_are_counted(rows: int, names: set[str]) -> None:
    model = product("Gemm", rows)
    assert few_rows(model, operations(model, {"x": [rows, 64]})) == names


def test_a_large_product_keeps_the_faster_kernels() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"], name="first")]
    model = ir.from_proto(graph(nodes, [value("x", [1, 1024])], [value("y", [1, 512])], {"w": normal(1024, 512)}))
    assert few_rows(model, operations(model, {"x": [1, 1024]})) == set()


@pytest.mark.parametrize(("rows", "pays"), [(1, False), (64, True)])
def test_a_small_product_is_not_worth_integers(rows: int, pays: bool, tmp_path: Path) -> None:
    model = product("Gemm", rows)
    cost = costs(model, Seen(observe(model, ["x", "y"], written(tmp_path, normal(rows, 64)), tmp_path)))
    (dynamic,) = (form for form in forms_of(model, pairs=True) if form.title == "products dynamic")
    assert (cost(dynamic) < 1) == pays
