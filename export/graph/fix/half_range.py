"""Values that fp16 does not hold -> fp32, and the products behind and before them rescaled by a power of two.

A product of fp16 matrices stays one, of which ``2^-k x`` is multiplied and the result is multiplied by ``2^k`` in fp32:
exact, but for what becomes subnormal. Everything between products is computed in fp32 as long as its values are large.
No node takes operands of two floating-point types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

LARGEST = 65504.0
# Larger values than these are kept in fp32: what was measured is not the largest that comes.
LIMIT = LARGEST / 4
# Where a rescaled product lies, so that ones of other tokens have room.
TARGET = LARGEST / 16
# Compute in fp32 what they compute in fp16, if all of their operands are cast.
PLAIN = set(
    "Abs Add Clip Concat Cos Div Erf Exp Expand Flatten Gather Gelu Identity LayerNormalization Log Max Mean Min Mul"
    " Neg Pow ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub"
    " Sum Tanh Tile Transpose Unsqueeze Where".split()
)


class HalfRange(ir.passes.InPlacePass):
    """Keep values in fp32 that are too large for fp16; inputs and outputs of the graph keep their types.

    Args:
        largest: The largest magnitude of values by name, as far as it was measured.
    """

    def __init__(self, largest: Mapping[str, float]) -> None:
        super().__init__()
        self.largest = {name: size for name, size in largest.items() if size > LIMIT}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every node that makes or takes a value that is too large."""
        widening = _Widening(model.graph, self.largest)
        modified = bool([node for node in list(model.graph) if widening.rewrite(node)])
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


class _Widening:
    def __init__(self, graph: ir.Graph, largest: Mapping[str, float]) -> None:
        self.graph, self.largest = graph, largest
        self.wide: dict[ir.Value, ir.Value] = {}  # in fp32, by the value in fp16
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.nodes: list[ir.Node] = []

    def rewrite(self, node: ir.Node) -> bool:
        """Rewrite a node if it needs it; return whether it did."""
        if node.domain or not (
            any(map(self._is_large, node.outputs)) or any(value in self.wide for value in node.inputs)
        ):
            return False
        self.nodes = []
        if node.op_type == "Cast":
            return self._cast(node)
        if node.op_type == "MatMul" and node.outputs[0].dtype == ir.DataType.FLOAT16:
            self._replace(node, [self._product(node)])
        elif node.op_type in PLAIN and not (node.op_type == "Concat" and node.outputs[0].is_graph_output()):
            self._replace(node, self._plain(node))
        else:
            return False  # takes what is rounded to fp16
        return True

    def _is_large(self, value: ir.Value) -> bool:
        return value.name in self.largest

    def _cast(self, node: ir.Node) -> bool:
        (x,), (y,) = node.inputs, node.outputs
        assert x is not None
        if x in self.wide and y.dtype == ir.DataType.FLOAT:
            y.replace_all_uses_with(self.wide[x], replace_graph_outputs=True)
            self.graph.remove(node, safe=True)
            return True
        if x.dtype == ir.DataType.FLOAT and y.dtype == ir.DataType.FLOAT16:
            self.wide[y] = x
            return True
        return False

    def _plain(self, node: ir.Node) -> Sequence[ir.Value]:
        """Return the outputs of the node computed in fp32."""
        inputs = [value if value is None else self._single(value) for value in node.inputs]
        outputs = [self._value(f"{value.name}.wide", ir.DataType.FLOAT) for value in node.outputs]
        self.nodes.append(
            ir.Node("", node.op_type, inputs, list(node.attributes.values()), outputs=outputs, name=f"{node.name}.wide")
        )
        return outputs

    def _product(self, node: ir.Node) -> ir.Value:
        """Return the product, scaled down before and up behind."""
        (a, b), (y,) = node.inputs, node.outputs
        assert a is not None
        assert b is not None
        left, right = (self._exponent(value) if value in self.wide else 0 for value in (a, b))
        left = max(left, self._exponent(y) - right)
        operands = [self._scaled(a, left, f"{y.name}.left"), self._scaled(b, right, f"{y.name}.right")]
        product = self._op("MatMul", operands, f"{y.name}.scaled", ir.DataType.FLOAT16)
        return self._power(self._to(product, ir.DataType.FLOAT), left + right, f"{y.name}.wide")

    def _exponent(self, value: ir.Value) -> int:
        return max(0, math.ceil(math.log2(self.largest.get(f"{value.name}", TARGET) / TARGET)))

    def _scaled(self, value: ir.Value, exponent: int, name: str) -> ir.Value:
        """Return the value times ``2^-exponent``, in fp16."""
        return self._to(self._power(self.wide.get(value, value), -exponent, name), ir.DataType.FLOAT16)

    def _power(self, value: ir.Value, exponent: int, name: str) -> ir.Value:
        if not exponent:
            return value
        assert value.dtype is not None
        factor = ir.tensor(np.array(2.0**exponent, value.dtype.numpy()))
        constant = self._value(f"{name}.factor", value.dtype)
        self.nodes.append(ir.node("Constant", [], {"value": factor}, outputs=[constant], name=constant.name))
        return self._op("Mul", [value, constant], name, value.dtype)

    def _single(self, value: ir.Value) -> ir.Value:
        if value in self.wide:
            return self.wide[value]
        return self._to(value, ir.DataType.FLOAT) if value.dtype == ir.DataType.FLOAT16 else value

    def _to(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.casts:
            suffix = "single" if dtype == ir.DataType.FLOAT else "half"
            output = self.casts[value, dtype] = self._value(f"{value.name}.{suffix}", dtype)
            self.nodes.append(ir.node("Cast", [value], {"to": int(dtype)}, outputs=[output], name=output.name))
        return self.casts[value, dtype]

    def _op(self, operator: str, inputs: Sequence[ir.Value], name: str, dtype: ir.DataType) -> ir.Value:
        output = self._value(name, dtype)
        self.nodes.append(ir.node(operator, inputs, outputs=[output], name=name))
        return output

    def _value(self, name: str, dtype: ir.DataType) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype))

    def _replace(self, node: ir.Node, outputs: Sequence[ir.Value]) -> None:
        """Put what was made in the place of a node; whoever takes its results in fp16 finds them rounded."""
        for old, new in zip(node.outputs, outputs, strict=True):
            if old.dtype != ir.DataType.FLOAT16:
                old.replace_all_uses_with(new, replace_graph_outputs=True)
                continue
            new.shape = old.shape
            narrow = self._to(new, ir.DataType.FLOAT16)
            narrow.shape = old.shape
            large, name = self._is_large(old), old.name
            old.replace_all_uses_with(narrow, replace_graph_outputs=True)
            old.name, narrow.name = f"{name}.replaced", name
            if large:
                self.wide[narrow] = new
        self.graph.insert_before(node, self.nodes)
        self.graph.remove(node, safe=True)
