"""A user's graph on an NPU: compiled and simulated, or refused with the node that its compiler or simulator breaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime_qnn", reason="pip install 'edgeglm[qnn]'")
pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.targets.base import graph_step
from edgeglm.export.targets.qnn.compile import cosine
from edgeglm.export.targets.qnn.compiler import Compiled
from edgeglm.export.targets.qnn.graph import _compared, _fault
from edgeglm.manifest import GraphManifest
from tests.export.foreign.small_graphs import graph, node, normal, value

SHAPE = [1, 8, 8, 8]


def exported(folder: Path, *behind: onnx.NodeProto, **weights: np.ndarray) -> GraphManifest:
    """Export a convolution and nodes behind it for the NPU."""
    nodes = [node("Conv", ["x", "conv.w"], ["c"], pads=[1, 1, 1, 1], name="conv"), *behind]
    model = graph(nodes, [value("x", SHAPE)], [value("y", [f"d{axis}" for axis in range(4)])],
                  {"conv.w": normal(8, 8, 3, 3, scale=0.15), **weights})  # fmt: skip
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
    "TopK": (node("TopK", ["c", "k"], ["y", "i"], name="last"), {"k": np.array([3])}),
    "CumSum": (node("CumSum", ["c", "a"], ["y"], name="last"), {"a": np.array(2)}),
}


@pytest.mark.parametrize("last", [node("ReduceL2", ["c"], ["y"], axes=[1], name="last"),
                                  node("Selu", ["c"], ["y"], name="last")], ids=["ReduceL2", "Selu"])  # fmt: skip
def test_what_onnx_writes_by_other_operators_is_taken(last: onnx.NodeProto, tmp_path: Path) -> None:
    manifest = exported(tmp_path, last)
    assert manifest.modules[0].compiled
    assert manifest.modules[0].compiled.executed_on == "HTP simulator"


def test_pads_that_constants_make_are_folded(tmp_path: Path) -> None:
    """As torch's exporter writes them, beginning with a tensor of zeros."""
    pads = [
        node("ConstantOfShape", ["n"], ["o"], value=numpy_helper.from_array(np.array([0]))),
        node("Concat", ["ends", "o"], ["p"], axis=0),
    ]
    behind = [node("Pad", ["c", "p"], ["d"]), node("Relu", ["d"], ["y"])]
    weights = {"n": np.array([4]), "ends": np.array([0, 0, 1, 0])}
    assert exported(tmp_path, *pads, *behind, **weights).modules[0].compiled


@pytest.mark.parametrize("operator", ["Log", "Sqrt"])
def test_what_gives_no_numbers_is_named(operator: str, tmp_path: Path) -> None:
    """Integers have no NaN, so that no precision of this NPU is near to the original."""
    with pytest.raises(AccuracyError, match=rf"last \({operator}\).*; it is NaN or infinite in places.* as by Max, or"):
        exported(tmp_path, node(operator, ["c"], ["y"], name="last"))


def test_a_node_of_endless_range_is_named(tmp_path: Path) -> None:
    behind = [node("Relu", ["c"], ["r"]), node("Log", ["r"], ["y"], name="last")]
    with pytest.raises(UnsupportedError, match=r"^last \(Log\): it gives NaN or infinity on the samples"):
        exported(tmp_path, *behind)


def test_a_node_without_any_value_is_named_as_that(tmp_path: Path) -> None:
    """It has no range, and none of its values is NaN."""
    behind = node("Slice", ["c", "none", "none", "axis"], ["y"], name="nothing")
    with pytest.raises(
        UnsupportedError, match=r"^nothing \(Slice\): it gives a tensor without any value.*; take it out"
    ):
        exported(tmp_path, behind, none=np.array([0]), axis=np.array([1]))


def lstm() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Return an LSTM behind the convolution, whose weights are slices of a constant."""
    nodes = [
        node("Reshape", ["c", "sizes"], ["s"], name="sequence"),
        node("Slice", ["ws", "zero", "one", "zero"], ["w"], name="slice"),
        node("LSTM", ["s", "w", "u"], ["y"], hidden_size=4, name="last"),
    ]
    places = {"zero": np.array([0]), "one": np.array([1]), "sizes": np.array([8, 8, 8])}
    return nodes, {"ws": normal(2, 16, 8, scale=0.3), "u": normal(1, 16, 4, scale=0.3), **places}


def test_the_table_refuses_an_lstm(tmp_path: Path) -> None:
    nodes, weights = lstm()
    with pytest.raises(UnsupportedError, match=r"last \(LSTM\): QNN HTP v68 does not have the operator"):
        exported(tmp_path, *nodes, **weights)


@pytest.mark.usefixtures("no_table")
def test_a_refusal_without_a_name_gets_the_node(tmp_path: Path) -> None:
    """The compiler says that memory was short, and no more; slices of weights are no nodes of its."""
    nodes, weights = lstm()
    with pytest.raises(UnsupportedError, match=r"cannot compile it: Failed .*, from last \(LSTM\) on"):
        exported(tmp_path, *nodes, **weights)


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


def test_outputs_that_are_both_zero_are_alike() -> None:
    """A mask of nothing, or a class that no sample has."""
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert cosine(zeros, zeros) == 1
    assert cosine(zeros, ones) == 0
    assert cosine(ones, ones) == pytest.approx(1)


def test_whole_numbers_count_by_the_share_that_differs() -> None:
    """Places of the largest are no directions: near ones have a cosine of almost 1, and are others."""
    places = np.arange(100, 120)
    for moved, share in ((0, 0.0), (1, 0.05), (20, 1.0)):
        other = places + (np.arange(20) < moved)
        least, most = _compared(Compiled("chip", [{"y": places}], [{"y": other}]))
        assert (least, most) == (None, share)
        assert (_fault(least, most) is None) == (share < 0.1)
    assert "other whole numbers than ONNX Runtime in 100% of" in f"{_fault(None, 1.0)}"


def test_without_the_compiler_nothing_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeglm.export.targets.qnn.compiler.DISTRIBUTION", "no-such-compiler")
    manifest = exported(tmp_path, node("Relu", ["c"], ["y"]))
    assert manifest.proof == "not proven: the NPU's compiler is not installed"
    assert (manifest.modules[0].engine, manifest.modules[0].compiled) == ("ort", None)
    assert graph_step("qnn").SIZED is False


def widened(
    folder: Path, precision: str = "int8", target: str = "qcs6490", huge: float = 3000
) -> tuple[GraphManifest, str]:
    """Export products and a sum behind them; one huge value in each sample takes all steps of the first product."""
    nodes = [node("MatMul", ["x", "w"], ["a"], name="first"), node("Reshape", ["a", "s"], ["r"], name="shape"),
             node("Add", ["r", "b"], ["t"], name="sum"), node("MatMul", ["t", "v"], ["c"], name="second"),
             node("Add", ["c", "b"], ["y"], name="last")]  # fmt: skip
    w = normal(32, 32) * 0.1
    w[0] = 0  # of which the output does not depend
    model = graph(nodes, [value("x", [4, 32])], [value("y", [4, 32])],
                  {"w": w, "v": normal(32, 32), "b": normal(32), "s": np.array([4, 32])})  # fmt: skip
    onnx.save(model, folder / "model.onnx")
    (folder / "samples").mkdir(exist_ok=True)
    for index in range(8):
        x = normal(4, 32)
        x[:, 0] = huge
        np.savez(folder / f"samples/{index}.npz", x=x)
    request = ExportRequest(
        model=str(folder / "model.onnx"), target=target, precision=precision, calibration=folder / "samples",
        output=folder / "bundle",
    )  # fmt: skip
    notes = export(request).notes
    manifest = read_sealed(folder / "bundle")
    assert isinstance(manifest, GraphManifest)
    return manifest, "\n".join(notes)


def test_what_8_bits_ruin_has_16_and_the_rest_has_not(tmp_path: Path) -> None:
    manifest, notes = widened(tmp_path)
    (module,) = manifest.modules
    (blamed,) = [note for note in notes.split("\n") if note.startswith("activations of 16 bits")]
    assert "most to blame first: first (MatMul); the error was 1; 48% of its operations are theirs" in blamed
    assert module.fp32_values == ("first (MatMul)",)
    assert module.max_relative_error is not None
    assert module.max_relative_error < 0.1
    assert module.compiled
    assert (module.compiled.executed_on, module.engine) == ("HTP simulator", "qnn")
    assert bits(tmp_path / "bundle") == {8, 16}


def test_all_have_16_bits_where_that_is_asked_for(tmp_path: Path) -> None:
    manifest, notes = widened(tmp_path, "a16w8")
    (module,) = manifest.modules
    assert (module.precision, module.fp32_values) == ("a16w8", ())
    assert module.compiled
    assert "most to blame" not in notes
    assert bits(tmp_path / "bundle") == {16}


def test_what_16_bits_ruin_is_a_float_on_an_npu_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match=r"is 1 away from the original's, relative to it, most of it by first"):
        widened(tmp_path, huge=1e8)
    manifest, notes = widened(tmp_path, target="sm8550", huge=1e8)
    (module,) = manifest.modules
    assert "computed in floating point, most to blame first: first (MatMul)" in notes
    assert module.fp32_values == ("first (MatMul)",)
    assert module.compiled


def test_another_engine_has_no_such_bits(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="a16w8: ONNX Runtime has no a16w8 of graphs of your own"):
        widened(tmp_path, "a16w8", "cpu")


def bits(bundle: Path) -> set[int]:
    """Return the bits of all activations of a graph."""
    model = ir.load(bundle / "graph/model.onnx")
    zeros = [node.inputs[2] for node in model.graph if node.op_type == "QuantizeLinear"]
    return {round(zero.dtype.itemsize * 8) for zero in zeros if zero is not None and zero.dtype is not None}
