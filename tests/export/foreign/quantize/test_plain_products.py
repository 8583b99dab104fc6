"""Products of a constant in other places have forms of INT8 too, and what has none is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.errors import UnsupportedError
from edgeglm.export.foreign.quantize.formless import list_formless
from edgeglm.export.foreign.quantize.plain_products import make_plain
from edgeglm.export.prove.onnx_run import opened
from tests.export.foreign.quantize.test_int8 import exported
from tests.export.foreign.small_graphs import graph, node, normal, value

EINSUMS = [
    ("bij,jk->bik", [2, 3, 8], [8, 5], 1),
    ("bchw,cd->bdhw", [1, 6, 4, 4], [6, 7], 1),
    ("jk,bij->bki", [2, 3, 8], [8, 5], 0),
    ("bthd,hdk->btk", [1, 4, 2, 6], [2, 6, 9], 1),
    ("btk, khd -> bhtd", [1, 4, 9], [9, 2, 6], 1),
]


def run(model: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the output of a graph, that of the graph with plain products, and the operators of that."""
    made = ir.from_proto(model)
    make_plain(made)
    graphs = model.SerializeToString(), ir.to_proto(made).SerializeToString()
    want, got = (opened(Path(), each)({"x": x})["y"] for each in graphs)
    return want, got, [each.op_type for each in made.graph]


@pytest.mark.parametrize(("equation", "shape", "weights", "place"), EINSUMS)
def test_an_einsum_with_a_constant_is_a_product(
    equation: str, shape: Sequence[int], weights: Sequence[int], place: int
) -> None:
    inputs = ["x", "w"] if place else ["w", "x"]
    rank = len(equation.partition("->")[2].strip())
    nodes = [node("Einsum", inputs, ["y"], equation=equation)]
    outputs = [value("y", [f"d{axis}" for axis in range(rank)])]
    want, got, operators = run(
        graph(nodes, [value("x", shape)], outputs, {"w": normal(*weights)}), normal(*shape)
    )  # fmt: skip
    assert operators.count("MatMul") == 1
    assert "Einsum" not in operators
    assert np.allclose(want, got, atol=1e-5)


@pytest.mark.parametrize("equation", ["bij,ij->bi", "bij,ij->bij", "bij,jk->bk"])
def test_an_einsum_of_another_kind_stays(equation: str) -> None:
    weights = normal(3, 8) if "ij," in equation and ",ij" in equation else normal(8, 5)
    rank = len(equation.partition("->")[2])
    model = graph([node("Einsum", ["x", "w"], ["y"], equation=equation)], [value("x", [2, 3, 8])],
                  [value("y", [f"d{axis}" for axis in range(rank)])], {"w": weights})  # fmt: skip
    assert run(model, normal(2, 3, 8))[2] == ["Einsum"]


@pytest.mark.parametrize("shape", [[8, 5], [2, 3, 8, 5]])
def test_a_constant_on_the_left_comes_to_the_right(shape: Sequence[int]) -> None:
    nodes = [node("MatMul", ["w", "x"], ["y"], name="left")]
    model = graph(nodes, [value("x", shape)], [value("y", [*shape[:-2], 6, 5])], {"w": normal(6, 8)})
    want, got, operators = run(model, normal(*shape))
    assert operators == ["Transpose", "MatMul", "Transpose"]
    assert np.allclose(want, got, atol=1e-5)


def test_a_constant_before_a_vector_comes_behind_it() -> None:
    model = graph([node("MatMul", ["w", "x"], ["y"], name="left")], [value("x", [8])], [value("y", [6])],
                  {"w": normal(6, 8)})  # fmt: skip
    want, got, operators = run(model, normal(8))
    assert operators == ["MatMul"]
    assert np.allclose(want, got, atol=1e-5)


def test_a_product_from_the_left_is_in_int8(tmp_path: Path) -> None:
    model = graph([node("MatMul", ["w", "x"], ["y"], name="left")], [value("x", [256, 64])],
                  [value("y", [128, 64])], {"w": normal(128, 256)})  # fmt: skip
    exported(model, [{"x": normal(256, 64)} for _ in range(4)], tmp_path)
    (module,) = read_sealed(tmp_path / "bundle").modules
    assert module.precision == "int8"
    size = sum(file.stat().st_size for file in (tmp_path / "bundle/graph").iterdir())
    assert size < 0.3 * (tmp_path / "model.onnx").stat().st_size


def test_the_most_weights_are_named_first() -> None:
    nodes = [node("Mul", [f"x{index}", f"w{index}"], [f"x{index + 1}"], name=f"n{index}") for index in range(4)]
    weights = {f"w{index}": normal(64 * (index + 1)) for index in range(4)}
    nodes.append(node("MatMul", ["x4", "v"], ["y"], name="product"))
    model = graph(nodes, [value("x0", [64])], [value("y", [64])], {"v": normal(64, 64), **weights})
    assert list_formless(ir.from_proto(model)) == "n3 (Mul) has none, n2 (Mul) has none, n1 (Mul) has none, and 1 more"


def test_a_refusal_names_what_has_no_form(tmp_path: Path) -> None:
    model = graph([node("MatMul", ["x", "x"], ["y"], name="square")], [value("x", [8, 8])], [value("y", [8, 8])], {})
    with pytest.raises(UnsupportedError, match=r"any of its operators: square \(MatMul\) has no constant weights"):
        exported(model, [{"x": normal(8, 8)} for _ in range(4)], tmp_path)


def test_a_note_names_what_has_no_form(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"], name="product"), node("Einsum", ["a", "v"], ["y"], name="diagonal",
             equation="ij,ij->i")]  # fmt: skip
    model = graph(nodes, [value("x", [16, 64])], [value("y", [16])], {"w": normal(64, 64), "v": normal(16, 64)})
    _, notes = exported(model, [{"x": normal(16, 64)} for _ in range(4)], tmp_path)
    (note,) = [note for note in notes if "8 bits or fewer" in note]
    assert note.endswith("diagonal (Einsum) has its weights in another place than INT8 takes them")
