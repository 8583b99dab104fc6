"""Chain a module's traces into one graph: front, the block once for every layer, back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeglm.export.trace.trace_request import Traces

# What a block's graph calls the state of its own layer: these become one input or output a layer.
STATE = ("past_", "present_", "cache_", "new_")
Renames = Mapping[str, str] | None
# A front or block names an output so where an input has its name already.
OUT = "_out"


@dataclass(frozen=True)
class Names:
    """Prefixes of the checkpoint's weight names for each part; ``block`` holds ``{layer}``."""

    front: str
    block: str
    back: str


def stamp_one(part: ir.Model, scope: str, prefix: str, layer: int | None = None, rename: Renames = None) -> ir.Model:
    """Return a model of one part alone, such as the block of one layer, that takes and gives what the part does."""
    chain = _Chain(rename or {})
    chain.append(part, scope, prefix, layer)
    return chain.model(dict(part.opset_imports), part.ir_version)


def stamp(traces: Traces, layers: int, names: Names, rename: Renames = None) -> ir.Model:
    """Return one model of copies of the block, whose placeholders name the checkpoint's weights.

    Args:
        traces: Front, block and back.
        layers: How many copies.
        names: The prefixes of the weights' names.
        rename: Maps a placeholder's full name to that in the checkpoint, where a prefix is not enough.
    """
    chain = _Chain(rename or {})
    chain.append(traces.front, "front", names.front)
    for layer in range(layers):
        chain.append(traces.block, f"layer.{layer}", names.block.format(layer=layer), layer)
    chain.append(traces.back, "back", names.back)
    opsets = {**traces.front.opset_imports, **traces.block.opset_imports, **traces.back.opset_imports}
    return chain.model(opsets, traces.block.ir_version)


class _Chain:
    """Values by name, as the parts give and take them."""

    def __init__(self, rename: Mapping[str, str]) -> None:
        self.rename = rename
        self.values: dict[str, ir.Value] = {}
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.last: list[ir.Value] = []
        self.scope = ""

    def append(self, part: ir.Model, scope: str, prefix: str, layer: int | None = None) -> None:
        graph, self.scope = part.graph, scope
        copies: dict[ir.Value, ir.Value] = {value: self._input(value, layer) for value in graph.inputs}
        for value in graph.initializers.values():
            copies[value] = self._initializer(value, scope.partition(".")[0])
        for node in graph:
            self._node(node, copies, scope, prefix)
        self.last = [self._output(value, copies[value], layer) for value in graph.outputs]

    def _input(self, value: ir.Value, layer: int | None) -> ir.Value:
        name = _name(value)
        if layer is not None and name.startswith(STATE):
            return self._graph_input(value, f"{name}.{layer}")
        if name not in self.values:
            self.values[name] = self._graph_input(value, name)
        return self.values[name]

    def _graph_input(self, value: ir.Value, name: str) -> ir.Value:
        self.inputs.append(ir.Value(name=name, shape=value.shape, type=value.type))
        return self.inputs[-1]

    def _initializer(self, value: ir.Value, scope: str) -> ir.Value:
        # Constants of the trace are the same in every layer.
        name = f"{scope}.{_name(value)}"
        if name not in self.initializers:
            copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
            self.initializers[name] = copy
        return self.initializers[name]

    def _node(self, node: ir.Node, copies: dict[ir.Value, ir.Value], scope: str, prefix: str) -> None:
        outputs = [ir.Value(name=f"{scope}.{o.name}", shape=o.shape, type=o.type) for o in node.outputs]
        copies.update(zip(node.outputs, outputs, strict=True))
        attributes = dict(node.attributes)
        if "weights" in attributes:
            names = [prefix + name for name in attributes["weights"].as_strings()]
            attributes["weights"] = ir.AttrStrings("weights", [self.rename.get(name, name) for name in names])
        self.nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                [copies[value] if value is not None else None for value in node.inputs],
                list(attributes.values()),
                outputs=outputs,
                name=f"{scope}.{node.name}",
            )
        )

    def _output(self, value: ir.Value, copy: ir.Value, layer: int | None) -> ir.Value:
        name = _name(value).removesuffix(OUT)
        if layer is not None and name.startswith(STATE):
            copy.name = f"{name}.{layer}"
            self.outputs.append(copy)
        else:
            self.values[name] = copy
        return copy

    def model(self, opsets: dict[str, int], ir_version: int) -> ir.Model:
        last = [value for value in self.last if value not in self.outputs]
        for value in last:
            value.name = _name(value).removeprefix(f"{self.scope}.")
        graph = ir.Graph(
            self.inputs,
            [*last, *self.outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports=opsets,
            name="edgeglm",
        )
        return ir.Model(graph, ir_version=ir_version)


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
