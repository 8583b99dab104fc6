"""Static integers for an NPU: what stands between any two operators, and the forms that its compiler takes."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgeglm.export.quantize.qdq import MOVING, Levels, lower_to_integers
from edgeglm.export.quantize.schemes import NpuInt8

ROUNDING = ("QuantizeLinear", "DequantizeLinear")
RANGES = {"x": (-1.0, 3.0), "y": (-2.0, 2.0), "y.product": (-2.5, 2.5), "n": (-4.0, 4.0), "out": (0.0, 6.0)}


def value(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def graph() -> ir.Model:
    """x, plus a table, through a Linear, an RMSNorm, a Reshape, a Softmax and a LayerNorm."""
    x, table, y, n, r, s, out = (
        value(name, *shape)
        for name, *shape in [
            ("x", 4, 6),
            ("t", 4, 6),
            ("y", 4, 8),
            ("n", 4, 8),
            ("r", 8, 4),
            ("s", 8, 4),
            ("out", 8, 4),
        ]
    )
    shape = ir.Value(name="to", const_value=ir.tensor([8, 4], name="to"), type=ir.TensorType(ir.DataType.INT64))
    moved = value("sum", 4, 6)
    linear: dict[str, list[str] | int] = {"weights": ["a.proj"], "rows": 8, "columns": 6, "bias": 1}
    nodes = [
        ir.node("Add", [x, table], outputs=[moved]),
        ir.node("Linear", [moved], linear, domain="edgeglm", outputs=[y]),
        ir.node("RMSNorm", [y], {"weights": ["a.norm"], "size": 8, "epsilon": 1e-5}, domain="edgeglm", outputs=[n]),
        ir.node("Reshape", [n, shape], outputs=[r]),
        ir.node("Softmax", [r], {"axis": -1}, outputs=[s]),
        ir.node("LayerNorm", [s], {"weights": ["b"], "size": 4, "epsilon": 1e-5}, domain="edgeglm", outputs=[out]),
    ]
    made = ir.Graph([x, table], [out], nodes=nodes, initializers=[shape], opset_imports={"": 20, "edgeglm": 1})
    return ir.Model(made, ir_version=10)


def step(model: ir.Model, name: str) -> float:
    tensor = model.graph.initializers[f"{name}.step"].const_value
    assert tensor is not None
    return float(tensor.numpy())


@pytest.mark.parametrize(("bits", "codes"), [(8, ir.DataType.UINT8), (16, ir.DataType.UINT16)])
def test_integers_stand_between_any_two_operators(bits: int, codes: ir.DataType) -> None:
    model = graph()
    lower_to_integers(model, NpuInt8(bits), RANGES, ["t"])
    for node in model.graph:
        if node.op_type in ROUNDING:
            continue
        floats = [each for each in node.inputs if each is not None and each.dtype == ir.DataType.FLOAT]
        assert floats
        assert {producer.op_type for each in floats if (producer := each.producer())} == {"DequantizeLinear"}
        assert all(each.producer() for each in floats)
        (use,) = node.outputs[0].uses()
        assert use.node.op_type == "QuantizeLinear"
        assert use.node.outputs[0].dtype == codes
    assert [each.name for each in model.graph.inputs] == ["x"]
    assert [each.name for each in model.graph.outputs] == ["out"]
    assert step(model, "x") == pytest.approx(4 / (2**bits - 1))


def test_what_moves_values_keeps_their_codes_and_a_softmax_has_its_own() -> None:
    model = graph()
    lower_to_integers(model, NpuInt8(8), RANGES, ["t"])
    assert "Reshape" in MOVING
    assert step(model, "r") == step(model, "n") == pytest.approx(8 / 255)
    assert step(model, "s") == 1 / 256


def test_weights_with_a_scale_for_each_row_have_zero_points() -> None:
    """Without them ONNX Runtime's exact kernels, for x86 without VNNI, fail (decision 0012)."""
    model = graph()
    lower_to_integers(model, NpuInt8(8), RANGES, ["t"])
    (weight,) = [node for node in model.graph if node.op_type == "DequantizeLinear" and "axis" in node.attributes]
    zeros = weight.inputs[2]
    assert zeros is not None
    assert zeros.const_value is not None
    assert zeros.const_value.numpy().tolist() == [0] * 8


def test_norms_are_one_operator_with_unsigned_weights() -> None:
    model = graph()
    stored = lower_to_integers(model, NpuInt8(16), RANGES, ["t"])
    operators = [node.op_type for node in model.graph if node.op_type not in ROUNDING]
    assert operators == ["Add", "MatMul", "Add", "RMSNormalization", "Reshape", "Softmax", "LayerNormalization"]
    types = {each.names[0]: each.parts[0].dtype for each in stored}
    assert types == {
        "a.proj.weight": ir.DataType.INT8,
        "a.proj.bias": ir.DataType.UINT16,
        "a.norm.weight": ir.DataType.UINT8,
        "b.weight": ir.DataType.UINT8,
        "b.bias": ir.DataType.INT32,
    }
    assert model.opset_imports == {"": 23}


def test_codes_hold_zero_and_both_ends() -> None:
    assert Levels.of((1.0, 3.0), 8) == Levels.of((0.0, 3.0), 8)
    levels = Levels.of((-1.0, 3.0), 8)
    assert levels.zero == 64
    assert Levels.of((0.0, 0.0), 8).step == 1.0
