"""INT8 of a user's graph, by measurement: the form with the least error, and nodes kept wide until it passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import NameFixPass
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.calibrate.histogram import least_squares, min_max
from edgeglm.export.foreign.integers import Form, Range, Recipe, formed_nodes, integer_nodes, quantize, ranged_values
from edgeglm.export.foreign.made import Made, read
from edgeglm.export.foreign.ranges import observe
from edgeglm.export.foreign.sensitivity import GOAL, NAMED, Search, search
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
    kinds = {f"{node.name}": node.op_type for node in formed_nodes(model)}
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

    recipe, found, untouched = _kept(model, chosen, error_of, limit)
    made = quantize(model, recipe)
    ir.save(made, output)

    def described(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{name} ({kinds[name]})" for name in names)

    return Made(
        {name: two_digits(error) for name, error in errors.items() if np.isfinite(error)},
        described(found.wide),
        described((untouched.blamed or found.blamed)[:NAMED]),
        two_digits(found.before) if np.isfinite(found.before) else 0.0,
        _share(made),
        described(untouched.wide),
    )


def _kept(
    model: ir.Model, chosen: Recipe, error_of: Callable[[Recipe], float], limit: float
) -> tuple[Recipe, Search, Search]:
    """Return the recipe that passes, the nodes that compute in floating point, and those that stay as they are.

    A node is only left as it is where the graph fails with all of them in floating point, by its rounded weights.
    """

    def passes(error: float) -> bool:
        return error < limit

    def wide(kept: Collection[str]) -> Recipe:
        return replace(chosen, wide=frozenset(kept))

    def untouched(kept: Collection[str]) -> Recipe:
        return replace(chosen, floating=frozenset(kept))

    names = [f"{node.name}" for node in integer_nodes(model)]
    found = search(names, lambda kept: error_of(wide(kept)), passes, min(GOAL, limit))
    if passes(found.error):
        return wide(found.wide), found, Search((), found.error, found.error)
    formed = [f"{node.name}" for node in formed_nodes(model)]
    left = search(formed, lambda kept: error_of(untouched(kept)), passes, min(GOAL, limit))
    return untouched(left.wide), replace(found, wide=()), left


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
