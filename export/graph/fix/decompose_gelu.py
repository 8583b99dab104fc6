"""Gelu(x) -> x/2 (1 + erf(x/√2)), or its tanh form where it says so."""

from __future__ import annotations

import math

import onnx_ir as ir

OPERATORS = {("", "Gelu"), ("com.microsoft", "Gelu"), ("com.microsoft", "FastGelu")}


class DecomposeGelu(ir.passes.InPlacePass):
    """Rewrite Gelu for an engine or opset that lacks the operator; FastGelu with a bias stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Gelu of ONNX or of ONNX Runtime whose type is known."""
        nodes = [node for node in model.graph if (node.domain, node.op_type) in OPERATORS and len(node.inputs) == 1]
        nodes = [node for node in nodes if node.inputs[0] is not None and node.inputs[0].dtype is not None]
        for node in nodes:
            _decompose(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _decompose(graph: ir.Graph, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    assert x.dtype is not None
    tape = ir.tape.Tape()
    dtype = x.dtype

    def number(value: float) -> ir.Value:
        return tape.op("Constant", [], {"value": ir.tensor(value, dtype=dtype)})

    if node.op_type == "FastGelu" or node.attributes.get_string("approximate", "none") == "tanh":
        cube = tape.op("Mul", [tape.op("Mul", [tape.op("Mul", [x, x]), x]), number(0.044715)])
        inner = tape.op("Mul", [tape.op("Add", [x, cube]), number(math.sqrt(2 / math.pi))])
        gate = tape.op("Tanh", [inner])
    else:
        gate = tape.op("Erf", [tape.op("Div", [x, number(math.sqrt(2))])])
    half = tape.op("Mul", [x, number(0.5)])
    product = tape.op("Mul", [half, tape.op("Add", [gate, number(1.0)])])
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [product])
