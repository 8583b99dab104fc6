"""Mul(x, Sigmoid(x)) -> QuickGelu(x, alpha=1): SiLU as ONNX Runtime's one operator."""

from __future__ import annotations

import onnx_ir as ir


class QuickGelu(ir.passes.InPlacePass):
    """SiLU is QuickGelu with alpha 1 (ONNX Runtime, ContribOperators: com.microsoft.QuickGelu)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every product of a value and its own sigmoid."""
        modified = False
        for node in model.graph:
            if (node.domain, node.op_type) == ("", "Sigmoid"):
                modified |= _fuse(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _fuse(graph: ir.Graph, sigmoid: ir.Node) -> bool:
    x, gate = sigmoid.inputs[0], sigmoid.outputs[0]
    users = [user for user, _ in gate.uses()]
    if len(users) != 1 or users[0].op_type != "Mul" or set(users[0].inputs) != {x, gate}:
        return False
    product = users[0].outputs[0]
    output = ir.Value(name=product.name, shape=product.shape, type=product.type)
    alpha = ir.AttrFloat32("alpha", 1.0)
    fused = ir.Node("com.microsoft", "QuickGelu", [x], [alpha], outputs=[output], name=users[0].name)
    graph.insert_before(users[0], fused)
    product.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(users[0], safe=True)
    graph.remove(sigmoid, safe=True)
    graph.opset_imports.setdefault("com.microsoft", 1)
    return True
