"""The nodes of a graph that have no form of INT8, and why."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.foreign.quantize.integers import kind_of
from edgeglm.export.foreign.quantize.new_nodes import RECURRENT, float_array

MULTIPLY = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", *RECURRENT}
# Nodes that a message names, and numbers of a constant that is worth a name.
NAMED, LEAST = 3, 64


def formless(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """Yield each node that multiplies or has many weights and no form, those of most weights first, and why."""
    found = []
    for node in RecursiveGraphIterator(model.graph):
        sizes = [array.size for array in map(float_array, node.inputs) if array is not None]
        most = max(sizes, default=0)
        if kind_of(node) is None and (most >= LEAST or node.op_type in MULTIPLY):
            found.append((most, node, _why(node, most)))
    for _, node, why in sorted(found, key=lambda one: -one[0]):
        yield node, why


def list_formless(model: ir.Model) -> str:
    """Return the first of these nodes, and why; nothing if there are none."""
    named = [f"{node.name} ({node.op_type}) {why}" for node, why in formless(model)]
    others = f", and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return ", ".join(named[:NAMED]) + others


def _why(node: ir.Node, most: int) -> str:
    if node.op_type not in MULTIPLY:
        return "has none"
    if not most:
        return "has no constant weights in fp32"
    return "has its weights in another place than INT8 takes them"
