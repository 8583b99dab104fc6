"""INT8 of a user's graph, by measurement: the form with the least error, and nodes kept wide until it passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import NameFixPass
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.calibrate.histogram import least_squares, min_max
from edgeglm.export.foreign.integers import Form, Range, Recipe, integer_nodes, quantize, ranged_values
from edgeglm.export.foreign.made import Made, read
from edgeglm.export.foreign.ranges import observe
from edgeglm.export.foreign.sensitivity import GOAL, NAMED, search
from edgeglm.export.foreign.trials import Trials
from edgeglm.export.prove.values import two_digits

Arrays = Mapping[str, NDArray[Any]]
# Where the errors of two forms are as near, the first is taken.
NEAR = 1.05
RANGES = {"": min_max, " in ranges of least error": least_squares}


def make_integers(
    prepared: Path, original: Path, samples: Path, held: Path, output: Path, limit: float, *, pairs: bool
) -> Made:
    """Write the graph in the form of INT8 that is nearest to the original.

    Args:
        prepared: The graph, folded.
        original: The user's file.
        samples: A folder of samples to calibrate on, ``0.npz`` and so on.
        held: Another, to measure on.
        output: The file to write.
        limit: The error at which it fails.
        pairs: Whether the target's kernels may saturate (x86).
    """
    model = ir.load(prepared)
    NameFixPass()(model)
    nodes = [f"{node.name}" for node in integer_nodes(model)]
    trials = Trials.of(original, held)

    def error_of(recipe: Recipe) -> float:
        return trials.error_of(ir.to_proto(quantize(model, recipe)).SerializeToString())

    names = [f"{value.name}" for value in ranged_values(model)]
    seen = observe(model, names, read(samples)) if names else {}
    recipes = {
        f"{form}{title}": Recipe(form, {name: _range(choose(values)) for name, values in seen.items()}, pairs=pairs)
        for form in _forms(model)
        for title, choose in (RANGES if seen else {"": min_max}).items()
    }
    errors = {name: error_of(recipe) for name, recipe in recipes.items()}
    least = min(errors.values())
    chosen = next(recipe for name, recipe in recipes.items() if errors[name] <= least * NEAR or errors[name] == least)

    def widened(wide: Collection[str]) -> Recipe:
        return Recipe(chosen.products, chosen.ranges, frozenset(wide), pairs=pairs)

    found = search(nodes, lambda wide: error_of(widened(wide)), lambda error: error < limit, min(GOAL, limit))
    made = quantize(model, widened(found.wide))
    ir.save(made, output)
    kinds = {f"{node.name}": node.op_type for node in integer_nodes(model)}
    return Made(
        {name: two_digits(error) for name, error in errors.items() if np.isfinite(error)},
        tuple(f"{name} ({kinds[name]})" for name in found.wide),
        tuple(f"{name} ({kinds[name]})" for name in found.blamed[:NAMED]),
        two_digits(found.before) if np.isfinite(found.before) else 0.0,
        _share(made),
    )


def _forms(model: ir.Model) -> Sequence[Form]:
    kinds = {node.op_type for node in integer_nodes(model)}
    return ("static", "dynamic") if kinds & {"MatMul", "Gemm"} else ("static",)


def _range(range_: Range) -> Range:
    return float(range_[0]), float(range_[1])


def _share(model: ir.Model) -> float:
    """Return the share of the weights' numbers that are in 8 bits."""
    numbers = {True: 0, False: 0}
    graphs = {node.graph for node in RecursiveGraphIterator(model.graph)} | {model.graph}
    for graph in graphs:
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8):
                numbers[tensor.dtype != ir.DataType.FLOAT] += tensor.size
    return numbers[True] / max(sum(numbers.values()), 1)
