"""RMSNorm(Add(a, b)) -> SkipRMSNorm(a, b), which also gives the sum: residual and norm in one pass over memory."""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "edgeglm"


class FuseSkipNorm(ir.passes.InPlacePass):
    """Fuses across blocks too, so it runs after stamping."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every norm of a sum of two values of one shape."""
        modified = False
        for node in model.graph:
            if (node.domain, node.op_type) == (DOMAIN, "RMSNorm"):
                modified |= _fuse(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _fuse(graph: ir.Graph, norm: ir.Node) -> bool:
    total = norm.inputs[0]
    add = total.producer() if total is not None else None
    if total is None or add is None or (add.domain, add.op_type) != ("", "Add") or total.is_graph_output():
        return False
    a, b = add.inputs
    # The operator adds a skip of the same shape; a position embedding or a bias may broadcast.
    if a is None or b is None or a.shape is None or a.shape != b.shape:
        return False
    old = norm.outputs[0]
    outputs = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in (old, total)]
    attributes = list(norm.attributes.values())
    fused = ir.Node(DOMAIN, "SkipRMSNorm", [a, b], attributes, outputs=outputs, name=norm.name)
    graph.insert_after(add, fused)
    old.replace_all_uses_with(outputs[0], replace_graph_outputs=True)
    total.replace_all_uses_with(outputs[1])
    graph.remove([norm, add], safe=True)
    return True
