"""Take nodes out of a graph that give what they take."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator


def pass_identities(model: ir.Model) -> None:
    """Let the takers of an Identity take what it takes, bodies included.

    One stays where its output would be no value of its graph's own, or the same as another output: an engine does not
    take that, and names of outputs would be lost. (`onnx_ir`'s pass makes such graphs.)
    """
    for node in list(RecursiveGraphIterator(model.graph)):
        if (node.domain, node.op_type) == ("", "Identity") and node.inputs[0] is not None:
            _pass(node, node.inputs[0], node.outputs[0])


def _pass(node: ir.Node, taken: ir.Value, given: ir.Value) -> None:
    assert node.graph is not None
    ends = given.is_graph_output()
    if ends:
        producer = taken.producer()
        if producer is None or producer.graph is not node.graph or taken.is_graph_output():
            return
    taken.type, taken.shape = taken.type or given.type, taken.shape or given.shape
    given.replace_all_uses_with(taken, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    if ends:
        taken.name = given.name
