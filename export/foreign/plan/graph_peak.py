"""Predict the resident memory of an export of a user's graph, from what its steps hold at the same time.

The process that exports holds the weights as they were read. A converter of another precision runs beside it; a builder
or compiler of an engine runs after that. Each step holds so many copies of the weights, and the values of a run.
``python -m benchmarks.own_graph --memory`` prints prediction and measurement side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.engines import DIALECTS, ENGINES, EngineName
from edgeglm.export.foreign.measure.activations import observed_bytes, run_bytes, value_bytes
from edgeglm.export.foreign.quantize.integers import ranged_values
from edgeglm.export.predict.peaks import COMPILER_BYTES, COMPILER_FACTOR

MIB = 1 << 20
# INT8 takes this opset or a newer one, in which scales have an axis.
SCALES_OPSET = 13
# Python, the libraries and a session of a small graph: in the process that exports, in the same while another runs, and
# in the converter to INT8 and to fp16.
EXPORTER, WAITING, QUANTIZER, NARROWER = 162 * MIB, 147 * MIB, 166 * MIB, 145 * MIB
# A node in a converter that measures: in graphs, sessions and histograms. And the profile of what is reached in bodies.
NODE, PROFILE = 160 << 10, 8 * MIB
# ONNX's converter of opsets, of graphs that INT8 brings to a newer one.
RAISER = 10 * MIB
# TensorRT for RTX in a process of its own, which maps its libraries; what QNN's compiler takes beyond a module's, with
# the checks of a graph.
BUILDER, CHECKS = 336 * MIB, 10 * MIB
# Copies of the weights: as they are read and checked; as they are written for the converter; beside the converter; and
# while the original's session and the emitted graph's are open.
READ, WRITTEN, BESIDE, MEASURED = 3, 4, 1, 3
# Copies in a converter that measures: folding a graph; opening a session over the graph, its form and that form's
# bytes; and in the run of that session. The one to fp16 for a CPU measures nothing, and holds both graphs.
FOLD, OPEN, RUN, HALF = 4.1, 5, 3.75, 2
# Copies of the largest weight: while it is rounded to codes, narrowed to fp16, packed in INT8 and in floating point.
ROUNDED, NARROWED, PACKED_CODES, PACKED = 5, 2.25, 0.5, 1
# Counting the values of the largest that is observed: masks, and what the engine works in.
COUNTED = 0.75
# Comparing outputs: both are there, and the largest in 64 bits, twice each, with masks.
COMPARED = 8.5


@dataclass(frozen=True)
class GraphSize:
    """The bytes of a graph that its export holds.

    Args:
        weights: All of them.
        largest: The largest of them.
        live: Values that live at once in a run, its inputs and outputs too.
        observed: The same of a run that keeps what is calibrated on.
        widest: The largest value that is computed.
        outputs: All outputs.
        output: The largest of them.
        inputs: All inputs, a sample of which waits while an engine's builder runs.
        nodes: How many it has, those in bodies too.
        opset: Of ONNX's operators.
        bodies: Whether it has bodies of If, Loop or Scan.
    """

    weights: int
    largest: int
    live: int
    observed: int
    widest: int
    outputs: int
    output: int
    inputs: int = 0
    nodes: int = 0
    opset: int = SCALES_OPSET
    bodies: bool = False

    @property
    def compared(self) -> int:
        """The bytes that a run, and then a comparison of its outputs with the original's, hold."""
        return max(self.live + self.outputs, 2 * self.outputs + int(COMPARED * self.output))


def size_of(
    model: ir.Model, shapes: Mapping[str, Sequence[int]], weights: int, precision: str, engine: EngineName
) -> GraphSize:
    """Return what a graph takes with inputs of these shapes, as far as shape inference knows them.

    Args:
        model: A graph, whose shapes are fixed in place.
        shapes: Of its inputs.
        weights: Bytes of its weights.
        precision: In which it is exported: for INT8, values that nodes take are kept, for fp16 of a GPU all.
        engine: For which.
    """
    live = run_bytes(model, shapes)
    names = _seen(model, precision, engine)
    computed = [value_bytes(value) for node in model.graph for value in node.outputs]
    inputs, outputs = ([value_bytes(value) for value in values] for values in (model.graph.inputs, model.graph.outputs))
    weights_of = (value for graph in model.graphs() for value in graph.initializers.values())
    stored = (value.const_value.nbytes for value in weights_of if value.const_value)
    observed = observed_bytes(model, names, shapes) if names else 0
    return GraphSize(
        weights, _most(stored), live, observed, _most(computed), sum(outputs), _most(outputs), sum(inputs),
        nodes=sum(1 for _ in RecursiveGraphIterator(model.graph)), opset=model.graph.opset_imports.get("", 1),
        bodies=any(True for _ in model.graph.subgraphs()),
    )  # fmt: skip


def _seen(model: ir.Model, precision: str, engine: EngineName) -> list[str]:
    if precision == "fp16" and ENGINES[engine].half:
        return [f"{value.name}" for node in model.graph for value in node.outputs]
    return [f"{value.name}" for value in ranged_values(model)] if precision in ("int8", "a8w8", "a16w8") else []


def weights_only(weights: int) -> GraphSize:
    """Return the size of a graph of which nothing but the weights is known."""
    return GraphSize(weights, 0, 0, 0, 0, 0, 0)


def graph_peak(size: GraphSize, precision: str, engine: EngineName) -> int:
    """Return the peak resident memory of an export of a graph."""
    measured = int(MEASURED * size.weights + PACKED * size.largest) + size.compared
    building = _building(size, engine)
    beside = max(_converting(size, precision, engine), building + size.inputs if building else 0)
    alone = EXPORTER + max((READ if precision == "fp32" else WRITTEN) * size.weights, measured)
    waiting = WAITING + (RAISER if precision not in ("fp32", "fp16") and size.opset < SCALES_OPSET else 0)
    return max(alone, waiting + BESIDE * size.weights + beside if beside else 0)


def _converting(size: GraphSize, precision: str, engine: EngineName) -> int:
    """Return what the converter takes."""
    if precision == "fp32":
        return 0
    seen = size.observed + int(COUNTED * size.widest) if size.observed else 0
    if precision == "fp16" and not ENGINES[engine].half:
        return NARROWER + int(HALF * size.weights + NARROWED * size.largest)
    return (
        QUANTIZER
        + NODE * size.nodes
        + (PROFILE if size.bodies else 0)
        + max(
            int(FOLD * size.weights),
            int(OPEN * size.weights + PACKED_CODES * size.largest),
            int(1.25 * size.weights) + ROUNDED * size.largest,
            int(RUN * size.weights) + max(seen, size.compared),
        )
    )


def _building(size: GraphSize, engine: EngineName) -> int:
    """Return what an engine's builder or compiler takes of the emitted graph."""
    if DIALECTS[ENGINES[engine].dialect].integers:
        return COMPILER_BYTES + CHECKS + COMPILER_FACTOR * size.weights // 4
    return BUILDER if ENGINES[engine].builds else 0


def _most(sizes: Iterable[int]) -> int:
    return max(sizes, default=0)
