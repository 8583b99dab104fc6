"""Graphs in every form that ONNX Runtime runs: read, and computed the same in fp32 and fp16."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxscript")

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from edgeglm.bundle import read_sealed
from edgeglm.devices.loader import load_profile
from edgeglm.devices.operator_table import table_for
from edgeglm.errors import EdgeglmError, UnsupportedError
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.foreign.fp16.half import to_half
from edgeglm.export.foreign.measure.activations import run_bytes
from edgeglm.export.foreign.normalize.operand_types import complete_types, operands_of
from edgeglm.export.foreign.normalize.tidy import load_model, name_nodes
from edgeglm.export.foreign.quantize.integers import Recipe, quantize
from edgeglm.export.foreign.read.graph_file import read_graph
from edgeglm.export.foreign.read.quiet import quiet
from edgeglm.export.graph.check import check
from edgeglm.export.graph.passes.infer_types import InferTypes
from edgeglm.export.prove.onnx_run import run_file
from tests.export.foreign.small_graphs import Small, Weights, X, graph, node, normal, plain, small_graphs, value
from tests.export.foreign.small_operators import small_operators

Capture = pytest.CaptureFixture[str]
SMALL = {**small_graphs(), **small_operators()}


def check_same(small: Small, file: Path, work: Path, limit: float) -> None:
    """Compare a written graph with its original: names, types, shapes and values."""
    want = run_file(read_graph(work / "model.onnx", work).original, small.sample)
    got = run_file(file, small.sample)
    assert list(got) == list(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        original, other = array.astype(np.float64), got[name].astype(np.float64)
        same = (original == other) | (np.isnan(original) & np.isnan(other))
        difference = np.where(same, 0, original - np.where(same, original, other))
        norm = np.linalg.norm(np.where(same, np.nan_to_num(original, posinf=0, neginf=0), original))
        assert np.linalg.norm(difference) <= limit * max(float(norm), 1e-30)


@pytest.mark.parametrize("name", SMALL)
def test_a_graph_computes_the_same_in_fp32_and_fp16(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = SMALL[name]
    onnx.save(small.model, tmp_path / "model.onnx")
    with quiet():
        source = read_graph(tmp_path / "model.onnx", tmp_path)
        for native in (None, False, True):
            model = load_model(source.proto, source.shapes)
            if native is not None:
                to_half(model, native=native)
            ir.save(model, tmp_path / "made.onnx")
            check_same(small, tmp_path / "made.onnx", tmp_path, 1e-6 if native is None else small.error)
    assert capfd.readouterr().err == ""


def test_a_node_that_is_named_stays_wide_between_casts(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"], name="first"), node("MatMul", ["a", "w"], ["y"], name="second")]
    onnx.save(plain(*nodes, w=normal(8, 8)), tmp_path / "model.onnx")
    source = read_graph(tmp_path / "model.onnx", tmp_path)
    model = load_model(source.proto, source.shapes)
    to_half(model, {"second"})
    assert [made.op_type for made in model.graph] == ["Cast", "MatMul", "Cast", "MatMul"]
    stored = sorted(f"{weight.dtype}" for weight in model.graph.initializers.values())
    assert stored == ["FLOAT", "FLOAT16"]


def test_a_graph_without_weights_is_in_fp32_unless_int8_is_asked_for(tmp_path: Path) -> None:
    onnx.save(SMALL["maps"].model, tmp_path / "model.onnx")
    np.savez(tmp_path / "sample.npz", **SMALL["maps"].sample)  # type: ignore[arg-type]
    request = ExportRequest(
        model=str(tmp_path / "model.onnx"),
        target="cpu",
        calibration=tmp_path / "sample.npz",
        output=tmp_path / "bundle",
    )
    notes = export(request).notes
    assert "INT8 has no form for any of its operators: it is in fp32" in notes
    assert "its output maps is the tensor of scores, a column a class, not maps by ZipMap" in notes
    module = read_sealed(tmp_path / "bundle").modules[0]
    assert (module.precision, module.max_relative_error) == ("fp32", 0)
    assert [(value.name, value.dtype, value.shape) for value in module.outputs] == [
        ("label", "int64", (2,)), ("maps", "float32", (2, 2)),
    ]  # fmt: skip
    with pytest.raises(UnsupportedError, match="INT8 has no form"):
        export(msgspec.structs.replace(request, precision="int8"))


def test_quantized_graphs_are_known_by_their_operators(tmp_path: Path) -> None:
    for name, wanted in (
        ("qdq", ("DequantizeLinear", "QuantizeLinear")),
        ("dynamic", ("DynamicQuantizeLinear", "MatMulInteger")),
        ("microsoft", ("DynamicQuantizeMatMul",)),
        ("conv", ()),
    ):
        onnx.save(SMALL[name].model, tmp_path / "model.onnx")
        assert read_graph(tmp_path / "model.onnx", tmp_path).integers == wanted


def test_what_a_bundle_cannot_describe_is_named(tmp_path: Path) -> None:
    sequence = graph(
        [node("SequenceConstruct", ["x", "x"], ["s"], name="pack")],
        X,
        [onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)],
    )
    text = graph([node("Identity", ["x"], ["y"])], [value("x", [1], onnx.TensorProto.STRING)], [])
    text.graph.output.append(value("y", [1], onnx.TensorProto.STRING))
    optional = graph([node("Relu", ["x"], ["y"])], X, [value("y", [2, 8])])
    kind = onnx.helper.make_optional_type_proto(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2]))
    optional.graph.input.append(onnx.helper.make_value_info("o", kind))
    for model, why in (
        (sequence, r"its output s \(of pack, SequenceConstruct\) is a sequence; take it out"),
        (text, r"its output y \(of a node, Identity\) is string, and a bundle has bool, float16"),
        (optional, "its input o is an optional value; feed"),
    ):
        onnx.save(model, tmp_path / "model.onnx")
        with pytest.raises(EdgeglmError, match=why):
            read_graph(tmp_path / "model.onnx", tmp_path)


def test_a_scalar_does_not_vary(tmp_path: Path) -> None:
    inputs = [value("x", [1, 32]), value("c", [], onnx.TensorProto.BOOL), value("k", None), value("n", ["n"])]
    onnx.save(graph([node("Where", ["c", "x", "x"], ["y"])], inputs, [value("y", [1, 32])]), tmp_path / "model.onnx")
    source = read_graph(tmp_path / "model.onnx", tmp_path)
    assert source.varying == ["k", "n"]
    profile = load_profile("qcs6490")
    table = table_for(profile, "qnn")
    assert table is not None
    found = check(load_model(source.proto, source.shapes), table, profile.limits)
    assert [violation.node for violation in found if violation.operator == "input"] == ["k", "n"]


def test_an_output_without_a_shape_is_no_fault_beside_others(tmp_path: Path) -> None:
    """What is wrong is named: an operator that is not there, or what the engine says."""
    doubles = [node("Erf", ["x"], ["e"]), node("Cast", ["e"], ["y"], to=onnx.TensorProto.FLOAT)]
    for nodes, inputs, why in (
        ([node("Spin", ["x"], ["y"], domain="acme", name="spinner")], X, r"spinner \(acme.Spin\): ONNX Runtime"),
        ([node("MatMul", ["x", "w"], ["y"], name="product")], X, r"ONNX Runtime does not load it: .*\(product\)"),
        (doubles, [value("x", [2, 8], onnx.TensorProto.DOUBLE)], "ONNX Runtime does not load it: .*Erf"),
    ):
        model = graph(nodes, inputs, [value("y", None)], {"w": normal(4, 4)}, domains=["acme"])
        onnx.save(model, tmp_path / "model.onnx")
        np.savez(tmp_path / "sample.npz", x=normal(2, 8))
        request = ExportRequest(
            model=str(tmp_path / "model.onnx"), target="cpu", precision="int8", calibration=tmp_path / "sample.npz",
            output=tmp_path / "bundle",
        )  # fmt: skip
        with pytest.raises(UnsupportedError, match=why):
            export(request)
        assert not (tmp_path / "bundle").exists()


def test_a_dropout_that_does_nothing_is_not_there() -> None:
    weights: Weights = {"w": normal(8, 8), "ratio": np.float32(0.5), "no": np.array(False), "yes": np.array(True)}
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Dropout", ["a", "ratio", "no"], ["b", ""]), node("Relu", ["b"], ["c"]),
        node("Identity", ["c"], ["d"]), node("Dropout", ["d"], ["e", "unused"]), node("Neg", ["e"], ["f"]),
        node("Dropout", ["f"], ["y"]), node("Dropout", ["f"], ["z", "mask"]),
        node("Dropout", ["f", "ratio", "yes"], ["t"]),
    ]  # fmt: skip
    outputs = [value(name, None, onnx.TensorProto.BOOL if name == "mask" else onnx.TensorProto.FLOAT) for name in
               ("y", "z", "mask", "t")]  # fmt: skip
    made = load_model(graph(nodes, X, outputs, weights), {"x": (2, 8)})
    assert [left.op_type for left in made.graph] == ["MatMul", "Relu", "Neg", "Dropout", "Dropout"]
    assert [output.name for output in made.graph.outputs] == ["y", "z", "mask", "t"]


def test_a_loop_without_a_first_condition_has_one() -> None:
    """TensorRT asks for it; ONNX Runtime computes the same with it."""
    loop, _ = load_model(SMALL["loop"].model, {"x": (2, 8)}).graph
    assert loop.inputs[1] is not None
    assert loop.inputs[1].const_value is not None
    assert loop.inputs[1].const_value.numpy() == np.array(True)


def test_values_that_live_at_once_are_counted() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Exp", ["a"], ["b"]), node("Add", ["a", "b"], ["y"])]
    model = load_model(graph(nodes, [value("x", ["n", 8])], [value("y", ["n", 8])]), {"x": ("n", 8)})
    assert run_bytes(model, {"x": (100, 8)}) == 3 * 100 * 8 * 4


def test_a_node_without_a_name_has_that_of_its_result() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"], name="y"), node("Abs", ["b"], ["y"])]
    assert [made.name for made in load_model(plain(*nodes), {}).graph] == ["a", "y", "y_1"]


def test_sequences_keep_their_types_and_weights_their_place(tmp_path: Path) -> None:
    nodes = [node("SplitToSequence", ["m"], ["s"], axis=1), node("ConcatFromSequence", ["s"], ["y"], axis=1)]
    model = ir.from_proto(plain(node("MatMul", ["x", "w"], ["m"]), *nodes, w=normal(8, 512)))
    InferTypes()(model)
    assert isinstance(model.graph.node(1).outputs[0].type, ir.SequenceType)
    assert list(model.graph.node(0).outputs[0].shape or ()) == [2, 512]
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.graph.initializers["w"].const_value is not None


def test_types_of_operators_beyond_onnx_come_from_their_schemas() -> None:
    model = ir.from_proto(SMALL["contrib"].model)
    opsets = model.graph.opset_imports
    fused, gelu, _ = model.graph
    assert fused.outputs[0].type is None
    complete_types(model.graph, opsets)
    assert gelu.outputs[0].dtype == ir.DataType.FLOAT
    resize = ir.node("Resize", [None, None, None])
    operands = operands_of(resize, {"": 17})
    assert operands is not None
    assert [bool(operand.may_be_half) for operand in operands.inputs] == [True, True, False, False]
    assert operands_of(ir.node("Twirl", []), {"": 17}) is None


def test_weights_in_constants_and_bodies_are_counted(tmp_path: Path) -> None:
    """Exporters of other frameworks write every weight as a node."""
    weight = onnx.numpy_helper.from_array(normal(8, 64), "w")
    typed = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [8, 64], normal(8, 64).ravel())
    bodies = [
        onnx.helper.make_graph([node("MatMul", ["x", "w"], ["o"])], "body", [], [value("o", [2, 64])], [tensor])
        for tensor in (weight, onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [8, 64], normal(8, 64).ravel()))
    ]
    nodes = [
        node("Constant", [], ["v"], value=typed),
        node("MatMul", ["x", "v"], ["a"]),
        node("If", ["c"], ["b"], then_branch=bodies[0], else_branch=bodies[1]),
        node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [*X, value("c", [], onnx.TensorProto.BOOL)]
    onnx.save(graph(nodes, inputs, [value("y", [2, 64])]), tmp_path / "model.onnx")
    assert read_graph(tmp_path / "model.onnx", tmp_path).weights_bytes == pytest.approx(3 * 4 * 8 * 64, rel=0.02)


def test_a_weight_that_nodes_share_is_stored_once() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    model = ir.from_proto(plain(*nodes, w=normal(8, 8)))
    name_nodes(model)
    for recipe in (Recipe("dynamic", {}), Recipe("static", {"x": (-3, 3), "r": (0, 3)}), Recipe("static", {})):
        codes = [one for one in quantize(model, recipe).graph.initializers.values() if one.dtype == ir.DataType.INT8]
        assert [value.shape for value in codes if len(value.shape or ()) == 2] == [ir.Shape([8, 8])]
