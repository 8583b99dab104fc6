"""Concat(Split(x)) -> x, where all parts are joined as they were: one projection gives what attention wants as one."""

from __future__ import annotations

import onnx_ir as ir


class JoinSplit(ir.passes.InPlacePass):
    """Drop the two halves of what `FuseLinears` and the trace leave between the projection and the rotary operator."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Concat whose inputs are, in order, all outputs of one Split that nothing else takes."""
        modified = False
        for node in model.graph:
            if node.op_type != "Concat" or (first := node.inputs[0]) is None:
                continue
            split = first.producer()
            if split is None or split.op_type != "Split" or list(split.outputs) != list(node.inputs):
                continue
            if any(len(value.uses()) > 1 or value.is_graph_output() for value in split.outputs):
                continue
            whole, joined = split.inputs[0], node.outputs[0]
            if whole is None or whole.shape != joined.shape or joined.is_graph_output():
                continue
            joined.replace_all_uses_with(whole)
            model.graph.remove([node, split], safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)
