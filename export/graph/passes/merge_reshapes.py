"""Reshape(Reshape(x, a), b) -> Reshape(x, b), and Reshape(x, shape of x) -> x."""

from __future__ import annotations

import onnx_ir as ir


class MergeReshapes(ir.passes.InPlacePass):
    """Tracing splits heads and joins them again where a fused operator takes them flat."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in topological order, so that a chain of any length becomes one or none."""
        modified = False
        for node in model.graph:
            if _is_reshape(node):
                modified |= _skip_producer(node) | _drop(node)
        return ir.passes.PassResult(model, modified)


def _is_reshape(node: ir.Node | None) -> bool:
    return node is not None and (node.domain, node.op_type) == ("", "Reshape")


def _skip_producer(node: ir.Node) -> bool:
    value = node.inputs[0]
    producer = value.producer() if value else None
    # A zero in the target would mean the producer's size, and then not the same one.
    if producer is None or not _is_reshape(producer) or not _says_every_size(node):
        return False
    node.replace_input_with(0, producer.inputs[0])
    _remove_unused(producer)
    return True


def _says_every_size(node: ir.Node) -> bool:
    shape = node.inputs[1]
    constant = shape.const_value if shape else None
    return constant is not None and (0 not in constant.numpy() or node.attributes.get_int("allowzero", 0) == 1)


def _drop(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None or source.shape != output.shape:
        return False
    if output.is_graph_output():
        return False
    output.replace_all_uses_with(source)
    _remove_unused(node)
    return True


def _remove_unused(node: ir.Node) -> None:
    if not any(output.uses() or output.is_graph_output() for output in node.outputs):
        assert node.graph is not None
        node.graph.remove(node, safe=True)
