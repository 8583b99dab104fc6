"""Lower a stamped graph to static integers: every value is quantized to a range that a calibration saw.

What an NPU computes with: a QuantizeLinear and a DequantizeLinear between any two operators, which its compiler takes
for the integer form of both. Weights are INT8 with one scale an output channel. Norms are one operator, with unsigned
weights: Hexagon v68 refuses signed ones, and of a decomposed RMSNorm it computes wrong numbers without an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.model import Part, Stored
from edgeglm.export.quantize.schemes import Codes, NpuInt8, Scheme
from edgeglm.export.quantize.storage import CODES, parts

DOMAIN = "edgeglm"
# RMSNormalization came with 23, 16-bit codes with 21 (https://onnx.ai/onnx/operators/).
OPSET = 23
# These only move values, and what they give has the codes of what they take.
MOVING = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity"}
# What these give has a range of its own, whatever they take; QNN's compiler wants exactly this one.
UNIT = {"Softmax", "Sigmoid"}
# Of a Linear's product before its bias, whose sum has the name of the Linear.
PRODUCT = ".product"

Range = tuple[float, float]


@dataclass(frozen=True)
class Levels:
    """Unsigned integers of `bits` bits for the values of a range, which holds zero."""

    step: float
    zero: int
    bits: int

    @classmethod
    def of(cls, range_: Range, bits: int) -> Levels:
        """Return those whose ends are the ends of the range."""
        low, high = min(range_[0], 0.0), max(range_[1], 0.0)
        step = float(np.float32((high - low) / (2**bits - 1))) or 1.0
        return cls(step, min(2**bits - 1, max(0, round(-low / step))), bits)

    @classmethod
    def unit(cls, bits: int) -> Levels:
        """Return those of 0 to 1, short of 1 by one step."""
        return cls(2.0**-bits, 0, bits)


def lower_to_integers(
    model: ir.Model, scheme: NpuInt8, ranges: Mapping[str, Range], tables: Sequence[str] = ()
) -> tuple[Stored, ...]:
    """Lower all placeholders of `model` in place, quantize all its values, and return what must be written.

    Args:
        model: The portable dialect in fp32, with static shapes.
        scheme: The bits of the activations.
        ranges: By the name of a value, and of a Linear with a bias also that of its product. Without one the graph has
            the size of any other, and computes nothing of use.
        tables: Inputs that are to be stored instead: what stands for one is ``NAME.weight``, ``.scale`` and ``.zero``.
            They are not among what is returned.
    """
    lowering = _Lowering(model.graph, scheme, ranges)
    for name in tables:
        lowering.table(name)
    for node in list(model.graph):
        if node.domain == DOMAIN:
            lowering.replace(node)
    lowering.quantize()
    model.graph.opset_imports.pop(DOMAIN, None)
    model.graph.opset_imports[""] = OPSET
    return tuple(lowering.stored)


class _Lowering:
    def __init__(self, graph: ir.Graph, scheme: NpuInt8, ranges: Mapping[str, Range]) -> None:
        self.graph, self.bits, self.ranges = graph, scheme.bits, ranges
        self.scheme = scheme
        self.stored: list[Stored] = []
        self.codes: dict[ir.Value, Levels] = {}

    # -- placeholders ----------------------------------------------------------------

    def replace(self, node: ir.Node) -> None:
        made: list[ir.Node] = getattr(self, f"_{node.op_type.lower()}")(node)
        (old,), new = node.outputs, made[-1].outputs[0]
        self.graph.insert_before(node, made)
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = old.name
        self.graph.remove(node, safe=True)

    def table(self, name: str) -> None:
        """Take an input from stored codes."""
        value = next(tensor for tensor in self.graph.inputs if tensor.name == name)
        assert value.shape is not None
        rows, columns = value.shape.numpy()
        stored = parts(Codes(self.bits), "qdq", rows, columns)
        values = [self._initializer(f"{name}.{part.suffix}", part) for part in stored]
        node = self._node("DequantizeLinear", values, f"{name}.dequantized", value.shape)
        value.replace_all_uses_with(node.outputs[0])
        self.graph.inputs.remove(value)
        self.graph.insert_before(self.graph[0], [node])

    def _linear(self, node: ir.Node) -> list[ir.Node]:
        (name,), x, output = node.attributes["weights"].as_strings(), node.inputs[0], node.outputs[0]
        rows, columns = (node.attributes[size].as_int() for size in ("rows", "columns"))
        weight = self._dequantized(f"{name}.weight", rows, columns, self.scheme, {"axis": 1})
        product = self._node("MatMul", [x, weight.outputs[0]], f"{output.name}{PRODUCT}", output.shape)
        if not node.attributes["bias"].as_int():
            return [weight, product]
        bias = self._vector(f"{name}.bias", rows, self.bits)
        return [weight, product, bias, self._node("Add", [product.outputs[0], bias.outputs[0]], f"{output.name}.sum")]

    def _rmsnorm(self, node: ir.Node) -> list[ir.Node]:
        weight = self._norm_vector(node, "weight", 8)
        return [weight, self._norm("RMSNormalization", node, [weight])]

    def _layernorm(self, node: ir.Node) -> list[ir.Node]:
        weight, bias = self._norm_vector(node, "weight", 8), self._norm_vector(node, "bias", 32)
        return [weight, bias, self._norm("LayerNormalization", node, [weight, bias])]

    def _norm(self, operator: str, node: ir.Node, vectors: Sequence[ir.Node]) -> ir.Node:
        attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].as_float()}
        inputs = [node.inputs[0], *(vector.outputs[0] for vector in vectors)]
        return self._node(operator, inputs, f"{node.outputs[0].name}.norm", attributes=attributes)

    def _norm_vector(self, node: ir.Node, suffix: str, bits: int) -> ir.Node:
        (name,) = node.attributes["weights"].as_strings()
        return self._vector(f"{name}.{suffix}", node.attributes["size"].as_int(), bits)

    def _vector(self, name: str, size: int, bits: int) -> ir.Node:
        """Return a bias or norm as codes of a range of its own."""
        return self._dequantized(name, size, 1, Codes(bits), {})

    def _dequantized(
        self, tensor: str, rows: int, columns: int, scheme: Scheme, attributes: Mapping[str, int]
    ) -> ir.Node:
        """Return a tensor of the checkpoint as it is stored, and back to what the codes stand for."""
        stored = parts(scheme, "qdq", rows, columns)
        values = [self._initializer(f"{tensor}.{part.suffix}", part) for part in stored]
        names = tuple(f"{value.name}" for value in values)
        self.stored.append(Stored((tensor,), rows, columns, scheme, stored, names))
        if attributes:  # ONNX Runtime's exact kernels fail on a scale for each row without zero points (decision 0012)
            values.append(self._tensor(f"{tensor}.zeros", np.zeros(rows, np.int8), ir.DataType.INT8))
        return self._node("DequantizeLinear", values, f"{tensor}.dequantized", values[0].shape, attributes)

    def _initializer(self, name: str, part: Part) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(part.shape), type=ir.TensorType(part.dtype))
        self.graph.initializers[name] = value
        return value

    def _node(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        shape: ir.Shape | None = None,
        attributes: Mapping[str, int | float] | None = None,
    ) -> ir.Node:
        output = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        return ir.node(operator, inputs, dict(attributes or {}), outputs=[output], name=name)

    # -- values ----------------------------------------------------------------------

    def quantize(self) -> None:
        """Put the codes of every float value between the node that makes it and those that take it."""
        initializers = list(self.graph.initializers.values())
        for value in initializers:
            if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
                self._constant(value)
        for value in list(self.graph.inputs):
            self._between(value, self._codes(value, None))
        for node in list(self.graph):
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                for value in node.outputs:
                    self._between(value, self._codes(value, node))

    def _codes(self, value: ir.Value, node: ir.Node | None) -> Levels:
        if node is not None and node.op_type in MOVING and node.inputs[0] in self.codes:
            return self.codes[node.inputs[0]]
        if node is not None and node.op_type in UNIT:
            return Levels.unit(self.bits)
        return Levels.of(self.ranges.get(f"{value.name}", (0.0, 1.0)), self.bits)

    def _between(self, value: ir.Value, codes: Levels) -> None:
        """Insert a value's codes and what they stand for behind it, which all its consumers take instead."""
        name, node = f"{value.name}", value.producer()
        grid = self._grid(name, codes)
        quantized = ir.Value(name=f"{name}.codes", shape=value.shape, type=ir.TensorType(CODES[codes.bits]))
        back = ir.Value(name=f"{name}.rounded", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
        first = ir.node("QuantizeLinear", [value, *grid], outputs=[quantized], name=f"{name}.quantize")
        second = ir.node("DequantizeLinear", [quantized, *grid], outputs=[back], name=f"{name}.dequantize")
        is_output = value.is_graph_output()
        value.replace_all_uses_with(back, replace_graph_outputs=True)
        first.replace_input_with(0, value)
        if is_output:
            value.name, back.name = f"{name}.exact", name
        if node is None:
            self.graph.insert_before(self.graph[0], [first, second])
        else:
            self.graph.insert_after(node, [first, second])
        self.codes[back] = codes

    def _constant(self, value: ir.Value) -> None:
        """Store a constant of the trace, such as a rotary table, as codes of its own range."""
        assert value.const_value is not None
        array = value.const_value.numpy()
        name, codes = f"{value.name}", Levels.of((float(array.min()), float(array.max())), self.bits)
        dtype = CODES[codes.bits]
        rounded = np.clip(np.rint(array / codes.step) + codes.zero, 0, 2**codes.bits - 1).astype(dtype.numpy())
        stored = self._tensor(f"{name}.codes", rounded, dtype)
        back = ir.Value(name=f"{name}.rounded", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
        node = ir.node("DequantizeLinear", [stored, *self._grid(name, codes)], outputs=[back], name=back.name)
        value.replace_all_uses_with(back)
        self.graph.insert_before(self.graph[0], [node])
        del self.graph.initializers[name]
        self.codes[back] = codes

    def _grid(self, name: str, codes: Levels) -> list[ir.Value]:
        step = self._tensor(f"{name}.step", np.array(codes.step, np.float32), ir.DataType.FLOAT)
        dtype = CODES[codes.bits]
        return [step, self._tensor(f"{name}.zero", np.array(codes.zero, dtype.numpy()), dtype)]

    def _tensor(self, name: str, array: NDArray[Any], dtype: ir.DataType) -> ir.Value:
        tensor = ir.tensor(array, dtype=dtype, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
        self.graph.initializers[name] = value
        return value
