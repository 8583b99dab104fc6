"""GroupQueryAttention(Split(qkv)) -> GroupQueryAttention(qkv): it takes the joint projection as it comes."""

from __future__ import annotations

import onnx_ir as ir


class PackAttention(ir.passes.InPlacePass):
    """Pack attention whose rotary is inside the operator: M-RoPE rotates queries and keys before it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every attention whose three inputs are, in order, the outputs of one Split."""
        modified = False
        for node in model.graph:
            if node.op_type != "GroupQueryAttention" or None in node.inputs[:3]:
                continue
            producers = [value.producer() for value in node.inputs[:3] if value is not None]
            split = producers[0]
            if split is None or split.op_type != "Split" or list(split.outputs) != list(node.inputs[:3]):
                continue
            for index, value in enumerate((split.inputs[0], None, None)):
                node.replace_input_with(index, value)
            model.graph.remove(split, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)
