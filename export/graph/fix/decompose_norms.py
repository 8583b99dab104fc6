"""LayerNormalization and RMSNormalization -> means, a root and products: in fp32, and back before the weight."""

from __future__ import annotations

import onnx_ir as ir

# Where ReduceMean takes its axes as an input.
AXES_INPUT_OPSET = 18
RMS = {"RMSNormalization", "SimplifiedLayerNormalization"}


class DecomposeNorms(ir.passes.InPlacePass):
    """Rewrite norms for an engine or opset that lacks them; one whose mean is used, or of unknown rank, stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every norm of either kind."""
        axes_input = model.graph.opset_imports.get("", 0) >= AXES_INPUT_OPSET
        nodes = [node for node in model.graph if not node.domain and _is_norm(node)]
        for node in nodes:
            _decompose(model.graph, node, axes_input=axes_input)
        return ir.passes.PassResult(model, bool(nodes))


def _is_norm(node: ir.Node) -> bool:
    if node.op_type != "LayerNormalization" and node.op_type not in RMS:
        return False
    x = node.inputs[0]
    used = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return x is not None and x.shape is not None and x.dtype is not None and not used


def _decompose(graph: ir.Graph, node: ir.Node, *, axes_input: bool) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    assert x is not None
    assert x.shape is not None
    assert x.dtype is not None
    tape, wide = ir.tape.Tape(), ir.DataType.FLOAT
    first = node.attributes.get_int("axis", -1) % len(x.shape)
    axes = list(range(first - len(x.shape), 0))

    def cast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if dtype == wide == x.dtype:
            return value
        return tape.op("Cast", [value], {"to": int(dtype)})

    def mean(value: ir.Value) -> ir.Value:
        if not axes_input:
            return tape.op("ReduceMean", [value], {"axes": axes, "keepdims": 1})
        over = tape.op("Constant", [], {"value": ir.tensor(axes, dtype=ir.DataType.INT64)})
        return tape.op("ReduceMean", [value, over], {"keepdims": 1})

    centred = cast(x, wide)
    if node.op_type not in RMS:
        centred = tape.op("Sub", [centred, mean(centred)])
    epsilon = tape.op("Constant", [], {"value": ir.tensor(node.attributes.get_float("epsilon", 1e-5), dtype=wide)})
    root = tape.op("Sqrt", [tape.op("Add", [mean(tape.op("Mul", [centred, centred])), epsilon])])
    result = cast(tape.op("Div", [centred, root]), x.dtype)
    result = tape.op("Mul", [result, weight])
    if bias is not None:
        result = tape.op("Add", [result, bias])
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs[:1], [result])
