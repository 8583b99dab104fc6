"""INT8 and INT4 of a user's graph, by measurement: the form of the least error for its cost, and nodes kept wide."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.foreign.graph_precision import Task
from edgeglm.export.foreign.measure.activations import operations
from edgeglm.export.foreign.measure.sensitivity import GOAL, NAMED, TRIED, Search, search
from edgeglm.export.foreign.measure.trials import Trials, affordable, make_folds, observe, reached
from edgeglm.export.foreign.normalize.tidy import name_nodes
from edgeglm.export.foreign.quantize.formless import list_formless
from edgeglm.export.foreign.quantize.forms import (
    REFINED,
    Form,
    blocks_form,
    choose,
    costs,
    error_over,
    few_rows,
    forms_of,
    refined_groups,
)
from edgeglm.export.foreign.quantize.integers import formed_nodes, integer_nodes, quantize, ranged_values
from edgeglm.export.foreign.quantize.new_nodes import float_array
from edgeglm.export.foreign.read.arrays import largest_shapes
from edgeglm.export.foreign.read.made import Made, read, sample_files
from edgeglm.export.prove.values import two_digits
from edgeglm.export.targets.base import Quantize, Quantizer

T = TypeVar("T")
Show = Callable[[float], None]


def make_integers(prepared: Path, task: Task, show: Show) -> Made:
    """Write a graph in INT4, or in the form of INT8 that is nearest to the original for its cost.

    Args:
        prepared: The graph, folded.
        task: The precision, the samples and the place.
        show: Told how far it is.
    """
    output, limit = Path(task.output), task.limit
    model = ir.load(prepared)
    name_nodes(model)
    kinds = {f"{node.name}": node.op_type for node in formed_nodes(model)}
    blocks = task.precision == "int4"
    names = [] if blocks else [f"{value.name}" for value in ranged_values(model)]
    original, samples, held = map(Path, (task.original, task.samples, task.held))
    given = [*sample_files(samples), *sample_files(held)]
    sized = model.clone()
    computed = operations(sized, largest_shapes(map(read, given)))
    seen, folds = make_folds(
        lambda files: observe(model, names, files, output.parent, sized) if names else {},
        original,
        samples,
        held,
        output.parent,
        affordable(sum(computed.values())),
    )
    unreached = _unreached(model, given, output.parent)
    forms = [form.with_floating(unreached) for form in _forms(model, computed, task)]
    error_of = counted(error_over(folds, lambda recipe: quantize(model, recipe)), len(forms) + REFINED + TRIED, show)
    runs = len(sample_files(samples))
    chosen, errors, refined = choose(forms, error_of, costs(model, seen, runs), refined_groups(model))

    form, found, untouched = _kept(model, chosen, error_of, limit)
    before = errors[chosen.title] if refined else found.before
    made = quantize(model, form.recipe_in(seen))
    ir.save(made, output)

    def described(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{name} ({kinds[name]})" for name in names)

    return Made(
        {name: two_digits(error) for name, error in errors.items() if np.isfinite(error)},
        described((*found.wide, *refined)),
        "weights in INT8" if blocks else "computed in floating point",
        described((untouched.blamed or found.blamed)[:NAMED]),
        two_digits(before) if np.isfinite(before) else 0.0,
        _share(made),
        described(untouched.wide),
        chosen.title,
        _cost(computed, (*found.wide, *refined)),
        described(unreached),
        list_formless(model),
    )


def _forms(model: ir.Model, computed: Mapping[str, int], task: Task) -> list[Form]:
    if task.precision == "int4":
        return [blocks_form(model)]
    return forms_of(model, pairs=task.pairs, few=few_rows(model, computed) if task.pairs else ())


def counted(error_of: Callable[[T], float], expected: int, show: Show) -> Callable[[T], float]:
    """Return what measures the same, and tells how much of as many measurements as are expected is done."""
    done = 0

    def told(form: T) -> float:
        nonlocal done
        error = error_of(form)
        done += 1
        show(done / max(expected, done + 1))
        return error

    return told


def widen(prepared: Path, quantizer: Quantizer, task: Task, show: Show) -> Made:
    """Write a graph in an engine's own form of INT8, with what ruins it there kept wide, as cheaply as that passes.

    Args:
        prepared: The graph, folded.
        quantizer: Writes it.
        task: The precision, the samples and the place.
        show: Told how far it is.
    """
    model, output = ir.load(prepared), Path(task.output)
    kinds = {f"{node.name}": node.op_type for node in model.graph}
    files = sample_files(Path(task.held))
    computed = operations(model.clone(), largest_shapes(map(read, files)))
    trials = Trials.of(Path(task.original), files, output.parent, affordable(sum(computed.values())))

    def passes(error: float) -> bool:
        return error < task.limit

    def tried(write: Quantize) -> Search:
        def error_of(wide: Collection[str]) -> float:
            write(output, wide)
            return trials.error_of(output.read_bytes())

        measured = counted(error_of, min(len(quantizer.nodes), TRIED), show)
        return search(quantizer.nodes, measured, passes, min(GOAL, task.limit))

    for title, write in quantizer.forms.items():
        found, widened = tried(write), title
        if passes(found.error):
            break
    write(output, found.wide)
    wide, blamed = (tuple(f"{name} ({kinds[name]})" for name in names) for names in (found.wide, found.blamed[:NAMED]))
    before = two_digits(found.before) if np.isfinite(found.before) else 0.0
    return Made(wide=wide, widened=widened, blamed=blamed, before=before, cost=_cost(computed, found.wide))


def _cost(counts: Mapping[str, int], wide: Collection[str]) -> float | None:
    """Return the share of a graph's operations that nodes have, two digits."""
    return two_digits(sum(counts.get(name, 0) for name in wide) / max(sum(counts.values()), 1)) if wide else None


def _kept(
    model: ir.Model, chosen: Form, error_of: Callable[[Form], float], limit: float
) -> tuple[Form, Search, Search]:
    """Return the form that passes, the nodes that compute in floating point, and those that stay as they are.

    A node is only left as it is where the graph fails with all of them in floating point, by its rounded weights.
    """

    def passes(error: float) -> bool:
        return error < limit

    def untouched(kept: Collection[str]) -> Form:
        return chosen.with_floating(kept)

    left_out = {*chosen.recipe.wide, *chosen.recipe.floating}
    names = [f"{node.name}" for node in integer_nodes(model) if node.name not in left_out]
    found = search(names, lambda kept: error_of(chosen.with_wide(kept)), passes, min(GOAL, limit))
    if passes(found.error):
        return chosen.with_wide(found.wide), found, Search((), found.error, found.error)
    formed = [f"{node.name}" for node in formed_nodes(model) if node.name not in chosen.recipe.floating]
    left = search(formed, lambda kept: error_of(untouched(kept)), passes, min(GOAL, limit))
    return untouched(left.wide), replace(found, wide=()), left


def _unreached(model: ir.Model, samples: Sequence[Path], work: Path) -> list[str]:
    """Return the nodes in bodies that no sample reaches, so that nothing could be measured of their weights.

    A node with the weights of one that is reached, as exporters write for each branch, is not among them.
    """
    nodes = formed_nodes(model)
    inside = [node for node in nodes if node.graph is not model.graph]
    computed = reached(model, map(read, samples), work) if inside else set[str]()
    missed = [node for node in inside if node.name not in computed]
    known = {_weights_of(node) for node in nodes if node not in missed} if missed else set()
    return [f"{node.name}" for node in missed if _weights_of(node) not in known]


def _weights_of(node: ir.Node) -> tuple[str, tuple[bytes, ...]]:
    """Return what tells a node's weights from others."""
    arrays = (float_array(value) for value in node.inputs)
    return node.op_type, tuple(blake2b(array.tobytes()).digest() for array in arrays if array is not None)


def _share(model: ir.Model) -> float:
    """Return the share of the weights' numbers that are in 8 bits, or in 4, two in a byte."""
    numbers = {True: 0, False: 0}
    graphs = {node.graph for node in RecursiveGraphIterator(model.graph)} | {model.graph}
    for graph in graphs:
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8):
                packed = any(use.node.op_type == "MatMulNBits" for use in value.uses())
                numbers[tensor.dtype != ir.DataType.FLOAT] += tensor.size * (1 + packed)
    return numbers[True] / max(sum(numbers.values()), 1)
