"""Outputs of a graph before its last Relu or Clip cuts them: the scale by which what is left is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgeglm.export.foreign.measure.difference import Comparison
from edgeglm.export.foreign.measure.places import Places
from edgeglm.export.prove.onnx_run import opened

CLAMPS = {"Relu", "Clip", "HardSwish", "ThresholdedRelu"}
# Those that are written by other operators: the greater, or the less, of a value and a constant.
COMPARED = {"Max", "Min"}
SLOPE = 0.2  # of HardSigmoid, where it has no attribute
# What passes values on, by their first input: moved, chosen, averaged or scaled, each in its channel.
PASSED = {
    "AveragePool", "BatchNormalization", "Cast", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Pad", "ReduceMax", "ReduceMean", "ReduceSum",
    "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample",
}  # fmt: skip
JOINED = {"Add", "Concat", "Mean", "Sub", "Sum"}
SCALED = {"Div", "Mul"}  # by a constant
BODIES = {"If", "Loop", "Scan"}
BEFORE = ".before_clamps"


def reach_of(original: Path, samples: Iterable[Mapping[str, NDArray[Any]]], places: Places) -> Comparison | None:
    """Return a graph's outputs on samples as they are before its last clamps, None where it has none."""
    proto = onnx.load(original, load_external_data=False)
    try:
        proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
        names = give_before_clamps(proto.graph)
        if not names:
            return None
        graph, reach = proto.SerializeToString(), Comparison(places)
        del proto
        run = opened(original, graph)
        del graph
        for sample in samples:
            outputs = run(sample)
            uncut = {name: outputs[before] for name, before in names.items()}
            reach.add(uncut, uncut)
    except Exception:  # the engine's own exceptions have no common base
        return None
    return reach


def give_before_clamps(graph: GraphProto) -> dict[str, str]:
    """Let a graph give its outputs as they are before its last clamps; returns their names by those of the outputs."""
    tails = _Tails(graph)
    names = {value.name: tails.before(value.name) for value in graph.output}
    names = {name: before for name, before in names.items() if before != name}
    graph.node.extend(tails.added)
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names.values()))
    return names


class _Tails:
    """Copies of what is behind a graph's last clamps."""

    def __init__(self, graph: GraphProto) -> None:
        self.added: list[NodeProto] = []
        self._graph = graph
        self._makers = {name: node for node in graph.node for name in node.output if node.domain in ("", "ai.onnx")}
        made_up = {node.output[0] for node in graph.node if node.op_type == "Constant"}
        self._constants = {tensor.name for tensor in graph.initializer} | made_up
        self._before: dict[str, str] = {}

    def before(self, name: str) -> str:
        """Return the value that a value is without the clamps before it, up to the first; itself where it has none."""
        if name not in self._before:
            node = self._makers.get(name)
            self._before |= {name: name} if node is None else self._without(node, name)
        return self._before[name]

    def _without(self, node: NodeProto, name: str) -> dict[str, str]:
        if node.op_type in BODIES:
            return self._in_bodies(node, name)
        varying = [taken for taken in node.input if taken and taken not in self._constants]
        if node.op_type in CLAMPS or (node.op_type in COMPARED and len(node.input) > len(varying) == 1):
            return {name: varying[0]} if varying else {name: name}
        if node.op_type == "HardSigmoid":
            return {name: self._sloped(node)}
        joined = node.op_type in JOINED or (node.op_type in SCALED and len(varying) == 1)
        if not joined and node.op_type not in PASSED:
            return {name: name}
        inputs = [self.before(taken) if joined or not index else taken for index, taken in enumerate(node.input)]
        return self._copied(node, inputs) if inputs != [*node.input] else {name: name}

    def _in_bodies(self, node: NodeProto, name: str) -> dict[str, str]:
        """Let bodies give a value as it is before their clamps, and the node after its other outputs."""
        bodies = [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
        index = [*node.output].index(name)
        carried = _carried(node)
        place = index + (node.op_type == "Loop")  # whose bodies give the condition first
        tails = [_Tails(body) for body in bodies]
        before = [tail.before(body.output[place].name) for tail, body in zip(tails, bodies, strict=True)]
        if all(uncut == body.output[place].name for uncut, body in zip(before, bodies, strict=True)):
            return {name: name}
        made = f"{name}{BEFORE}"
        for tail, body, uncut in zip(tails, bodies, before, strict=True):
            body.node.extend(tail.added)
            given = f"{made}.given"  # a body gives no value twice
            body.node.append(helper.make_node("Identity", [uncut], [given]))
            body.output.append(onnx.ValueInfoProto(name=given))
        _give_as(node, index - carried)
        if index >= carried:
            node.output.append(made)
            return {name: made}
        # What a loop carries is given of every round; the last is the one.
        node.output.append(f"{made}.rounds")
        self._graph.initializer.append(numpy_helper.from_array(np.array(-1), f"{made}.last"))
        self.added.append(helper.make_node("Gather", [f"{made}.rounds", f"{made}.last"], [made]))
        return {name: made}

    def _copied(self, node: NodeProto, inputs: list[str]) -> dict[str, str]:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name or node.output[0]}{BEFORE}"
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        names = {name: f"{name}{BEFORE}" for name in node.output if name}
        copy.output.extend(names.get(name, "") for name in node.output)
        self.added.append(copy)
        return names

    def _sloped(self, node: NodeProto) -> str:
        """Return what HardSigmoid takes, times its slope."""
        slope = next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), SLOPE)
        made, factor = f"{node.output[0]}{BEFORE}", f"{node.output[0]}{BEFORE}.slope"
        self._graph.initializer.append(helper.make_tensor(factor, TensorProto.FLOAT, [], [slope]))
        self.added.append(helper.make_node("Mul", [node.input[0], factor], [made]))
        return made


def _carried(node: NodeProto) -> int:
    """Return how many outputs of a node its rounds carry from one to the next."""
    if node.op_type == "If":
        return 0
    if node.op_type == "Loop":
        return len(node.input) - 2  # the number of rounds, and whether there is a first
    scanned: int = next(attribute.i for attribute in node.attribute if attribute.name == "num_scan_inputs")
    return len(node.input) - scanned


def _give_as(node: NodeProto, scanned: int) -> None:
    """Let a Scan stack its new output as it does another; what is carried, on the first axis."""
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(attribute.ints[scanned] if scanned >= 0 else 0)
