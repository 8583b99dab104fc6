"""fp16 of a user's graph for an accelerator: what overflows there, or errs, stays in fp32 node by node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.evaluate.fp16_sessions import EXACT, round_results
from edgeglm.export.foreign.fp16.half import to_half
from edgeglm.export.foreign.measure.sensitivity import NAMED, search
from edgeglm.export.foreign.measure.trials import Trials, observe
from edgeglm.export.foreign.normalize.tidy import name_nodes
from edgeglm.export.foreign.read.made import Made, sample_files
from edgeglm.export.graph.fix.half_range import LIMIT

# An error of fp16 that needs no node in fp32.
GOAL = 0.005
# What stands between the sum of squares of a norm and its quotient.
ROOTS = {"Add", "Sqrt", "Reciprocal", "Pow", "Div"}


def make_half(graph: Path, original: Path, held: Path, output: Path, limit: float) -> Made:
    """Write a graph in fp16, measured with a rounding behind every operator.

    Args:
        graph: In fp32.
        original: The user's file.
        held: A folder of samples, ``0.npz`` and so on.
        output: The file to write.
        limit: The error at which it fails.
    """
    model = ir.load(graph)
    name_nodes(model)
    trials = replace(Trials.of(original, sample_files(held), output.parent), layouts=False)
    floats = [node for node in RecursiveGraphIterator(model.graph) if node.op_type not in EXACT and _is_float(node)]
    whole = [node for node in floats if node.graph is model.graph]
    names = [f"{value.name}" for node in whole for value in node.outputs if value.name and _is_single(value)]
    seen = observe(model, names, sample_files(held), output.parent)
    large = {name for name, values in seen.items() if max(-values.low, values.high) > LIMIT}
    first = tuple(f"{node.name}" for node in floats if node in set(_touching(floats, large)) | set(_norms(floats)))

    def made(wide: Collection[str]) -> ir.Model:
        changed = model.clone()
        to_half(changed, {*first, *wide}, native=True)
        return changed

    def error_of(wide: Collection[str]) -> float:
        return trials.error_of(round_results(ir.to_proto(made(wide))).SerializeToString())

    rest = [f"{node.name}" for node in floats if node.name not in first]
    found = search(rest, error_of, lambda error: error < limit, min(GOAL, limit))
    ir.save(made(found.wide), output)
    kinds = {f"{node.name}": node.op_type for node in floats}
    listed = tuple(f"{name} ({kinds[name]})" for name in (*found.wide, *first))
    return Made(wide=listed, blamed=tuple(f"{name} ({kinds[name]})" for name in found.blamed[:NAMED]))


def _is_single(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _is_float(node: ir.Node) -> bool:
    return any(map(_is_single, (*node.inputs, *node.outputs)))


def _touching(nodes: Iterable[ir.Node], names: Collection[str]) -> Iterator[ir.Node]:
    """Yield the nodes that make or take one of the values."""
    for node in nodes:
        if any(value is not None and value.name in names for value in (*node.inputs, *node.outputs)):
            yield node


def _norms(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Yield the nodes of norms that are written as means of squares and roots: what is beyond fp16 only comes later."""
    for node in nodes:
        square = node.inputs[0].producer() if node.op_type in ("ReduceMean", "ReduceSum") and node.inputs[0] else None
        if square is None or not _is_square(square):
            continue
        yield square
        yield from _centred(square)
        taken = [node]
        while taken:
            behind = taken.pop()
            yield behind
            taken += [other for other in behind.successors() if other.op_type in ROOTS and behind.op_type != "Div"]


def _centred(square: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes that take the mean away from what is squared."""
    less = square.inputs[0].producer() if square.inputs[0] else None
    if less is not None and less.op_type == "Sub":
        yield less
        yield from (node for node in less.predecessors() if node.op_type == "ReduceMean")


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])
