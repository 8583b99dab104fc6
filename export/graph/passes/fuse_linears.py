"""Linear(x, A), Linear(x, B), … -> Split(Linear(x, [A; B; …])): one product where a block has several of one input."""

from __future__ import annotations

from collections import defaultdict

import onnx_ir as ir

DOMAIN = "edgeglm"


class FuseLinears(ir.passes.InPlacePass):
    """Queries, keys and values become one projection; so do the gate and up projections of the vision MLP."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse the Linear placeholders of every value that has several, all with or all without a bias."""
        groups: dict[tuple[ir.Value, int], list[ir.Node]] = defaultdict(list)
        for node in model.graph:
            if (node.domain, node.op_type) == (DOMAIN, "Linear") and node.inputs[0] is not None:
                groups[node.inputs[0], node.attributes["bias"].as_int()].append(node)
        several = [nodes for nodes in groups.values() if len(nodes) > 1]
        for nodes in several:
            _fuse(model.graph, nodes)
        return ir.passes.PassResult(model, bool(several))


def _fuse(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    first, x = nodes[0], nodes[0].inputs[0]
    sizes = [node.attributes["rows"].as_int() for node in nodes]
    old = first.outputs[0]
    assert x is not None
    assert x.shape is not None
    product = ir.Value(name=f"{old.name}.fused", shape=ir.Shape([*x.shape[:-1], sum(sizes)]), type=old.type)
    names = [name for node in nodes for name in node.attributes["weights"].as_strings()]
    attributes = {**first.attributes, "rows": ir.AttrInt64("rows", sum(sizes))}
    attributes["weights"] = ir.AttrStrings("weights", names)
    fused = ir.Node(DOMAIN, "Linear", [x], list(attributes.values()), outputs=[product], name=f"{first.name}.fused")
    split = _constant(graph, f"{first.name}.sizes", sizes)
    axis = ir.AttrInt64("axis", -1)
    shapes = [ir.Shape([*x.shape[:-1], size]) for size in sizes]
    outputs = [
        ir.Value(name=node.outputs[0].name, type=old.type, shape=shape)
        for node, shape in zip(nodes, shapes, strict=True)
    ]
    parts = ir.Node("", "Split", [product, split], [axis], outputs=outputs, name=f"{first.name}.split")
    graph.insert_before(first, [fused, parts])
    for node, output in zip(nodes, outputs, strict=True):
        node.outputs[0].replace_all_uses_with(output, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    tensor = ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)
    value = ir.Value(name=name, shape=ir.Shape([len(numbers)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
