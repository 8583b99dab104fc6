"""Find the values that are too large for half precision, from the original's values on the probes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType

from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.graph.fix.half_range import LIMIT, HalfRange
from edgeglm.export.graph.stamp import STATE
from edgeglm.export.model import Stored
from edgeglm.export.prepare.module import POSITION, is_position, prepare_module
from edgeglm.export.prepare.types import WEIGHTS, Prepared, PreparedModule
from edgeglm.export.prove.values import Values
from edgeglm.export.write.layout import bind

# What a lowered Linear computes on its way is called like it with one of these behind.
INSIDE = ("", ".matmul", ".narrow")
MOVES = set("Concat Expand Reshape Slice Split Squeeze Transpose Unsqueeze".split())


class Magnitudes:
    """The largest magnitudes of a module's values in half precision, by their names in its graph.

    They are measured in the original. The half traces have the same operators in the same order, and casts.
    """

    def __init__(self, prepared: Prepared, module: PreparedModule) -> None:
        assert prepared.probe.half is not None
        self.segments = segments(stack_of(module.choice.name, prepared.probe.half), "portable")
        self.largest: dict[str, float] = {}
        self.labels: dict[str, str] = {}
        self.origins: dict[str, str] = {}  # what computed a value, where it was only moved since
        self.names: dict[str, str] = {}

    def next_segment(self, single: ir.Model) -> None:
        """Go on with the segment whose graph in single precision this is."""
        name, half = next(self.segments)
        self.names, computed = {}, dict[ir.Value | None, str]()
        for value, source in _aligned(half, single).items():
            producer = value.producer()
            assert producer is not None
            full = f"{value.name}"
            if value in half.graph.outputs and name != "back" and not full.startswith(STATE):
                full = f"{name}.{full}"
            linear = producer.op_type == "Linear"
            for suffix in INSIDE if linear else ("",):
                self.names[full + suffix] = source
            if linear:
                self.labels[full] = producer.attributes["weights"].as_strings()[0]
            elif producer.op_type not in MOVES | {"Cast"}:
                self.labels[full] = full
            moved = next((computed[name] for name in producer.inputs if name in computed), full)
            computed[value] = self.origins[full] = self.labels.get(full, moved)

    def see(self, values: Values) -> None:
        """Take the values of the segment on one prompt."""
        sizes = {name: float(np.abs(array).max(initial=0.0)) for name, array in values.items()}
        for name, source in self.names.items():
            self.largest[name] = max(self.largest.get(name, 0.0), sizes[source])

    def keep_in_range(self, graph: ir.Model) -> tuple[str, ...]:
        """Keep in fp32 what is too large; returns what that is, in the order of computation."""
        HalfRange(self.largest)(graph)
        return tuple(dict.fromkeys(label for name, label in self.labels.items() if self.largest[name] > LIMIT))


def _aligned(half: ir.Model, single: ir.Model) -> dict[ir.Value, str]:
    """Map each value in half precision to the name of the same in single precision."""
    pairs = zip(_computing(half), _computing(single), strict=True)
    same: dict[ir.Value, str] = {value: f"{value.name}" for value in half.graph.inputs}
    found: dict[ir.Value, str] = {}
    sources = {}
    for node, other in pairs:
        assert (node.domain, node.op_type) == (other.domain, other.op_type), f"{node} is {other}"
        sources[node] = other
    for node in half.graph:
        if node.op_type == "Cast":
            (x,) = node.inputs
            outputs = [same[x]] if x in same else []
        else:
            outputs = [f"{value.name}" for value in sources[node].outputs]
        for value, name in zip(node.outputs, outputs, strict=False):
            same[value] = name
            if value.dtype == DataType.FLOAT16:
                found[value] = name
    return found


def _computing(model: ir.Model) -> Iterable[ir.Node]:
    return [node for node in model.graph if node.op_type != "Cast"]


def probe_graph(prepared: Prepared, module: PreparedModule) -> ir.Model:
    """Return the vision module's graph for the probe's picture: it reads the weights from the file of the whole one.

    The position embedding is an input of it.
    """
    assert prepared.probe.half is not None
    choice = module.choice
    traced = {(choice.dialect, choice.half): prepared.probe.half}
    made = prepare_module(choice, prepared.request.profile, traced, prepared.checkpoint, prepared.calibration)
    assert made.graph is not None
    kept = [index for index, job in enumerate(module.jobs) if not is_position(job.stored)]
    stored: list[Stored] = [module.jobs[index].stored for index in kept]
    layout = replace(module.layout, offsets=tuple(module.layout.offsets[index] for index in kept))
    bind(made.graph, stored, layout, WEIGHTS)
    value = made.graph.graph.initializers.pop(POSITION)
    value.const_value = None
    made.graph.graph.inputs.append(value)
    return made.graph
