"""INT8 of graphs for a CPU: forms by kind, weights that do not saturate, and nodes kept wide until it passes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.foreign.measure.sensitivity import search
from edgeglm.export.foreign.measure.trials import Seen, Trials, observe
from edgeglm.export.foreign.quantize.codes import LARGEST_PAIR, encode
from edgeglm.export.foreign.quantize.forms import Form, choose, costs
from edgeglm.export.foreign.quantize.integers import Recipe, integer_nodes, quantize
from edgeglm.export.foreign.quantize.new_nodes import float_array
from edgeglm.export.foreign.read.made import Made
from edgeglm.export.prove.onnx_run import opened
from edgeglm.runtimes.engines.ort import options
from tests.export.foreign.small_graphs import branches, graph, node, normal, value, written
from tests.haswell import run_on_haswell

RANDOM = np.random.default_rng(0)
# Runs a graph on samples as any program does, without an entry of edgeglm's.
PLAIN_RUN = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(json.dumps([session.run(None, dict(numpy.load(file)))[0].tolist() for file in sys.argv[2:]]))
"""


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def exported(
    model: onnx.ModelProto, samples: list[dict[str, np.ndarray]], folder: Path
) -> tuple[list[Path], Sequence[str]]:
    """Export in INT8; returns the files of the samples, and the notes."""
    onnx.save(model, folder / "model.onnx")
    (folder / "samples").mkdir()
    files = [folder / f"samples/{index}.npz" for index in range(len(samples))]
    for file, sample in zip(files, samples, strict=True):
        np.savez(file, **sample)  # type: ignore[arg-type]
    request = ExportRequest(
        model=str(folder / "model.onnx"), target="cpu", precision="int8", calibration=folder / "samples",
        output=folder / "bundle",
    )  # fmt: skip
    return files, export(request).notes


def outputs(folder: Path, sample: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The original's first output and the bundle's."""
    files = folder / "model.onnx", folder / "bundle/graph/model.onnx"
    want, got = (next(iter(opened(file)(sample).values())) for file in files)
    return want, got


def detector() -> onnx.ModelProto:
    """Boxes of 0 to 320 and scores of 0 to 1 in one concatenation."""
    weights = {"w0": normal(8, 3, 3, 3), "wb": normal(4, 8, 1, 1), "ws": normal(6, 8, 1, 1) * 0.3}
    nodes = [
        node("Conv", ["x", "w0"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["a"]),
        node("Conv", ["a", "wb"], ["b"]), node("Sigmoid", ["b"], ["p"]), node("Mul", ["p", "size"], ["boxes"]),
        node("Conv", ["a", "ws"], ["s"]), node("Sigmoid", ["s"], ["scores"]),
        node("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]  # fmt: skip
    inputs, results = [value("x", [1, 3, 12, 12])], [value("y", [1, 10, 12, 12])]
    return graph(nodes, inputs, results, {"size": np.array(320, np.float32), **weights})


def test_scores_beside_boxes_stay_alive(tmp_path: Path) -> None:
    samples = [{"x": RANDOM.random((1, 3, 12, 12)).astype(np.float32)} for _ in range(8)]
    exported(detector(), samples, tmp_path)
    for sample in samples:
        want, got = outputs(tmp_path, sample)
        assert error(got[:, 4:], want[:, 4:]) < 0.05
        assert error(got[:, :4], want[:, :4]) < 0.05


def test_the_error_holds_where_kernels_saturate(tmp_path: Path) -> None:
    """Activations and weights at the ends of their ranges, in a plain session without VNNI."""
    w = (RANDOM.standard_normal((64, 64)) * 0.02 + 0.3).astype(np.float32)
    model = graph([node("MatMul", ["x", "w"], ["y"])], [value("x", [64, 64])], [value("y", [64, 64])], {"w": w})
    samples = [{"x": (RANDOM.random((64, 64)) * 0.1 + 0.9).astype(np.float32)} for _ in range(4)]
    files, _ = exported(model, samples, tmp_path)
    recorded = read_sealed(tmp_path / "bundle").modules[0].max_relative_error
    assert recorded is not None
    script = tmp_path / "run.py"
    script.write_text(PLAIN_RUN)
    there = json.loads(run_on_haswell(script, tmp_path / "bundle/graph/model.onnx", *files))
    wanted = [outputs(tmp_path, sample)[0] for sample in samples]
    assert max(error(np.array(got), want) for got, want in zip(there, wanted, strict=True)) < 2 * recorded < 0.01


@pytest.mark.parametrize("along", [0, 1])
def test_neighbours_in_a_product_hold_in_sixteen_bits(along: int) -> None:
    weights = RANDOM.standard_normal((32, 32)).astype(np.float32)
    found = encode(weights, 1 - along, pairs_along=along)
    assert error(found.codes * found.scale, weights) < 0.015
    codes = np.moveaxis(found.codes.astype(int), along, 0)
    pairs = np.where(codes[:-1] * codes[1:] > 0, np.abs(codes[:-1] + codes[1:]), 0)
    assert 100 < pairs.max() <= LARGEST_PAIR


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_weights_of_recurrent_layers_are_in_int8(kind: str, tmp_path: Path) -> None:
    gates, hidden = {"LSTM": 4, "GRU": 3}[kind], 32
    weights = {
        "w": normal(1, gates * hidden, 16) * 0.3, "r": normal(1, gates * hidden, hidden) * 0.2,
        "b": normal(1, 2 * gates * hidden) * 0.1,
    }  # fmt: skip
    inputs, results = [value("x", ["t", 1, 16])], [value("y", ["t", 1, 1, hidden])]
    model = graph([node(kind, ["x", "w", "r", "b"], ["y"], hidden_size=hidden)], inputs, results, weights)
    samples = [{"x": RANDOM.standard_normal((12, 1, 16)).astype(np.float32)} for _ in range(4)]
    exported(model, samples, tmp_path)
    size = (tmp_path / "model.onnx").stat().st_size
    assert read_sealed(tmp_path / "bundle").bundle_bytes < 0.4 * size
    assert error(*reversed(outputs(tmp_path, samples[3]))) < 0.05


def test_what_no_sample_reaches_stays_as_it_is(tmp_path: Path) -> None:
    samples = [{"x": normal(1, 32), "c": np.array(True)} for _ in range(4)]
    _, notes = exported(branches(), samples, tmp_path)
    (note,) = [note for note in notes if "no sample reaches" in note]
    (name,) = read_sealed(tmp_path / "bundle").modules[0].fp32_values
    assert note == f"kept in floating point, since no sample reaches them: {name}"
    one, other = outputs(tmp_path, {**samples[0], "c": np.array(False)})
    assert np.array_equal(one, other)
    assert 1e-4 < error(*reversed(outputs(tmp_path, samples[0]))) < 0.05


def test_a_branch_with_weights_that_samples_reach_elsewhere_is_in_int8(tmp_path: Path) -> None:
    model = branches()
    model.graph.initializer[1].raw_data = model.graph.initializer[0].raw_data
    samples = [{"x": normal(1, 32), "c": np.array(True)} for _ in range(4)]
    _, notes = exported(model, samples, tmp_path)
    assert not [note for note in notes if "no sample reaches" in note]
    assert 1e-4 < error(*reversed(outputs(tmp_path, {**samples[0], "c": np.array(False)}))) < 0.05


def test_a_layer_in_a_body_is_in_int8(tmp_path: Path) -> None:
    model = branches()
    samples = [
        {"x": RANDOM.standard_normal((1, 32)).astype(np.float32), "c": np.array(index % 2 == 0)} for index in range(4)
    ]
    exported(model, samples, tmp_path)
    for sample in samples:
        assert error(*reversed(outputs(tmp_path, sample))) < 0.05
    assert (tmp_path / "bundle/graph/model.onnx").stat().st_size < 0.6 * (tmp_path / "model.onnx").stat().st_size


def test_weights_of_a_body_are_not_stored_twice() -> None:
    def body(name: str) -> onnx.GraphProto:
        weights = [onnx.numpy_helper.from_array(normal(32, 32), name)]
        product = node("MatMul", ["x", name], [f"{name}y"], name=f"{name}.product")
        return onnx.helper.make_graph([product], name, [], [value(f"{name}y", [1, 32])], weights)

    nodes = [node("If", ["c"], ["y"], then_branch=body("w"), else_branch=body("v"))]
    inputs = [value("x", [1, 32]), value("c", [], onnx.TensorProto.BOOL)]
    model = ir.from_proto(graph(nodes, inputs, [value("y", [1, 32])], {}))
    for wide in ([], ["w.product", "v.product"]):
        made = quantize(model, Recipe("static", {}, wide=wide))
        stored = [one for body in made.graph.subgraphs() for one in body.initializers.values()]
        assert [one.dtype for one in stored if one.const_value and one.const_value.size == 32 * 32] == [
            ir.DataType.INT8
        ] * 2


def test_a_table_is_in_int8(tmp_path: Path) -> None:
    model = graph(
        [node("Gather", ["w", "x"], ["y"])], [value("x", [1, 4], onnx.TensorProto.INT64)], [value("y", [1, 4, 32])],
        {"w": normal(100, 32)},
    )  # fmt: skip
    samples = [{"x": RANDOM.integers(0, 100, (1, 4))} for _ in range(4)]
    exported(model, samples, tmp_path)
    assert error(*reversed(outputs(tmp_path, samples[3]))) < 0.01


def test_what_ruins_an_output_is_computed_in_floating_point(tmp_path: Path) -> None:
    """One huge value in each sample takes all steps of the first product, and none of the second."""
    nodes = [node("MatMul", ["x", "w"], ["a"], name="first"), node("Tanh", ["a"], ["t"]),
             node("MatMul", ["t", "v"], ["y"], name="second")]  # fmt: skip
    w = normal(32, 32)
    w[0] = 0  # of which the output does not depend
    model = graph(nodes, [value("x", [4, 32])], [value("y", [4, 1024])], {"w": w * 0.1, "v": normal(32, 1024)})
    samples = [{"x": RANDOM.standard_normal((4, 32)).astype(np.float32)} for _ in range(8)]
    for sample in samples:
        sample["x"][:, 0] = 3000
    _, notes = exported(model, samples, tmp_path)
    (note,) = [note for note in notes if "computed in floating point" in note]
    assert "first: first (MatMul); the error was" in note
    (module,) = read_sealed(tmp_path / "bundle").modules
    assert module.fp32_values == ("first (MatMul)",)
    assert module.max_relative_error is not None
    assert module.max_relative_error < 0.1


def test_weights_that_rounding_ruins_stay_as_they_are(tmp_path: Path) -> None:
    """Weights that no input uses take all steps of the first product's channels: its other weights round to 0."""
    nodes = [node("MatMul", ["x", "w"], ["a"], name="first"), node("Tanh", ["a"], ["t"]),
             node("MatMul", ["t", "v"], ["y"], name="second")]  # fmt: skip
    w = normal(32, 32) * 0.1
    w[0] = 3000
    model = graph(nodes, [value("x", [4, 32])], [value("y", [4, 8])], {"w": w, "v": normal(32, 8)})
    samples = [{"x": RANDOM.standard_normal((4, 32)).astype(np.float32)} for _ in range(8)]
    for sample in samples:
        sample["x"][:, 0] = 0
    _, notes = exported(model, samples, tmp_path)
    assert any("kept in floating point, weights too, most to blame first: first (MatMul)" in note for note in notes)
    (module,) = read_sealed(tmp_path / "bundle").modules
    assert module.fp32_values == ("first (MatMul)",)
    assert module.max_relative_error is not None
    assert module.max_relative_error < 0.1


def test_the_most_to_blame_are_kept_and_no_more() -> None:
    damage = {f"n{index}": 0.001 for index in range(20)} | {"n7": 0.6, "n3": 0.3}
    nodes = list(damage)

    def error_of(wide: Collection[str]) -> float:
        return float(np.sqrt(sum(damage[name] ** 2 for name in nodes if name not in wide)))

    found = search(nodes, error_of, lambda error: error < 0.5)
    assert (found.wide, found.blamed[:2]) == (("n7", "n3"), ("n7", "n3"))
    assert search(nodes, lambda wide: 0.05, lambda error: error < 0.5).wide == ()
    assert set(search(nodes, lambda wide: 0.9, lambda error: error < 0.5).wide) == set(nodes)


def test_a_recipe_leaves_what_it_is_told_to() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"], name="first"), node("MatMul", ["a", "w"], ["y"], name="second")]
    model = ir.from_proto(graph(nodes, [value("x", [1, 8])], [value("y", [1, 8])], {"w": normal(8, 8)}))
    assert [made.name for made in integer_nodes(model)] == ["first", "second"]
    made = quantize(model, Recipe("dynamic", {}, wide=["first"], floating=["second"]))
    assert [other.op_type for other in made.graph] == ["Cast", "Mul", "MatMul", "MatMul"]


def test_a_form_costs_what_it_multiplies(tmp_path: Path) -> None:
    """A convolution by depth rounds more numbers than it multiplies, so integers do not pay there."""
    nodes = [node("Conv", ["x", "d"], ["a"], name="depth", group=16, pads=[1, 1, 1, 1]),
             node("Conv", ["a", "p"], ["y"], name="points")]  # fmt: skip
    weights = {"d": normal(16, 1, 3, 3), "p": normal(64, 16, 1, 1)}
    model = ir.from_proto(graph(nodes, [value("x", [1, 16, 32, 32])], [value("y", [1, 64, 32, 32])], weights))
    x = RANDOM.standard_normal((1, 16, 32, 32)).astype(np.float32)
    cost = costs(model, Seen(observe(model, ["x", "a", "y"], written(tmp_path, x), tmp_path)))
    whole, depth = Form("", Recipe("static", {})), Form("", Recipe("static", {}, wide=["depth"]))
    assert cost(depth) < cost(whole)
    assert cost(Form("", Recipe("static", {}, wide=["depth", "points"]))) == 1
    errors = {frozenset[str](): 0.004, frozenset(["depth"]): 0.0025, frozenset(["points", "depth"]): 0.002}
    best, _, refined = choose(
        [whole, Form("weights only", Recipe("static", {}, wide=["depth", "points"]))],
        lambda form: errors.get(frozenset(form.recipe.wide), 1.0), cost, [["depth"], ["points"]],
    )  # fmt: skip
    assert (best.recipe.wide, refined) == ({"depth"}, ("depth",))


def test_a_recurrent_layer_that_names_its_layout_is_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the exact kernels too, which take no zero points of an LSTM that are one."""
    monkeypatch.setattr(options, "saturates", lambda: True)
    weights = {"w": normal(1, 32, 8), "r": normal(1, 32, 8)}
    layer = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8, layout=0)
    model = ir.from_proto(graph([layer], [value("x", [4, 1, 8])], [value("y", [4, 1, 1, 8])], weights))
    made = ir.to_proto(quantize(model, Recipe("static", {}))).SerializeToString()
    assert opened(Path(), made)({"x": np.ones((4, 1, 8), np.float32)})["y"].shape == (4, 1, 1, 8)


def test_a_graph_that_the_engine_does_not_take_is_as_wrong_as_can_be() -> None:
    assert Trials([]).error_of(b"no graph") == float("inf")


def test_weights_that_are_no_float32_are_left() -> None:
    tensors = [ir.Value(name=f"{dtype}", const_value=ir.tensor(np.ones(2, dtype))) for dtype in ("f4", "f2", "i8")]
    assert [float_array(tensor) is not None for tensor in tensors] == [True, False, False]


def test_a_note_says_how_much_is_in_int8() -> None:
    assert Made(share=0.95).notes() == []
    assert Made(share=0.5).notes() == ["50% of the weights are in 8 bits or fewer"]
