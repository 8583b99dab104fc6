"""The choice between forms of a graph's nodes: the least product of error and cost, measured on samples.

The cost is counted, so that two exports choose the same: products of a run, of which integers take a part, steps of
rounding what flows in, and what it takes to begin. Half of the error is worth twice the products.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeglm.export.calibrate.histogram import Histogram, least_squares, min_max
from edgeglm.export.foreign.measure.sensitivity import grouped
from edgeglm.export.foreign.measure.trials import Choose, Fold, Seen
from edgeglm.export.foreign.quantize.integers import (
    Recipe,
    formed_nodes,
    in_blocks,
    integer_nodes,
    kind_of,
    step_behind,
)
from edgeglm.export.foreign.quantize.new_nodes import RECURRENT, float_array

# Of a product in floating point: one of integers. And of a number: its rounding. And of a node: the steps that it takes
# beside the one of floating point; a layer of 256 x 256 and one row takes as long in either.
INTEGER, ROUNDING, BEGINNING = 1 / 3, 4, 20_000
# Rows and products up to which those of unsigned weights take at most a tenth longer than those of signed ones; and
# products that are short beside the run of a graph, whatever their rows.
FEW, SHORT, SHORTEST = 2, 1 << 18, 1 << 16
RANGES = {"": min_max, ", ranges of least error": least_squares}
# Groups of nodes that are tried in floating point for the product's sake.
REFINED = 12
# An error below which less is nothing.
LEAST = 1e-6


@dataclass(frozen=True)
class Form:
    """A form of a graph's nodes: its title, the recipe but for ranges, and how these are chosen."""

    title: str
    recipe: Recipe
    choose: Choose = min_max

    def recipe_in(self, seen: Seen) -> Recipe:
        """Return the recipe in ranges of values that were seen."""
        return replace(self.recipe, ranges=seen.ranges(self.choose), means=seen.means())

    def with_floating(self, names: Collection[str]) -> Form:
        """Return the form with more nodes that stay as they are."""
        return replace(self, recipe=replace(self.recipe, floating=frozenset([*self.recipe.floating, *names])))

    def with_wide(self, names: Collection[str]) -> Form:
        """Return the form with more nodes that compute in floating point."""
        return replace(self, recipe=replace(self.recipe, wide=frozenset([*self.recipe.wide, *names])))


def forms_of(model: ir.Model, *, pairs: bool, few: Collection[str] = ()) -> list[Form]:
    """Return the forms between which it is measured, those of fewer kinds of integers last.

    Args:
        model: The graph.
        pairs: Whether neighbouring weights must not saturate.
        few: Names of products of few rows.
    """
    names: dict[str, list[str]] = {"convolution": [], "product": [], "LSTM": []}
    for node in integer_nodes(model):
        names[f"{kind_of(node)}"].append(f"{node.name}")
    convolutions, products, recurrent = names.values()
    forms = []
    for form in ("static", "floating") if convolutions else ("",):
        for product in ("static", "dynamic") if products else ("",):
            told = ((form, "convolutions"), (product, "products"))
            title = ", ".join(f"{kind} {name}" for name, kind in told if name) or "dynamic"
            wide = frozenset(convolutions if form == "floating" else ())
            recipe = Recipe("dynamic" if product == "dynamic" else "static", {}, wide=wide, pairs=pairs, unsigned=few)
            for suffix, choose in RANGES.items() if "static" in (form, product) else [("", min_max)]:
                if form != "floating" or product:
                    forms.append(Form(f"{title}{suffix}", recipe, choose))
    floating = frozenset([*convolutions, *products, *recurrent])
    return [*forms, Form("weights only", Recipe("static", {}, wide=floating, pairs=pairs))]


def blocks_form(model: ir.Model) -> Form:
    """Return the form of INT4."""
    others = frozenset(f"{node.name}" for node in integer_nodes(model) if not in_blocks(node))
    return Form("products in INT4, other weights in INT8", Recipe("blocks", {}, wide=others))


def choose(
    forms: Sequence[Form],
    error_of: Callable[[Form], float],
    cost_of: Callable[[Form], float],
    groups: Sequence[Sequence[str]],
) -> tuple[Form, dict[str, float], tuple[str, ...]]:
    """Return the form of the least product, the error of each by its title, and what of it computes in floating point.

    Args:
        forms: To choose from.
        error_of: The error of a form.
        cost_of: Its cost.
        groups: Names of nodes that are tried in floating point together, in the form that was chosen.
    """
    errors = {form.title: error_of(form) for form in forms}

    def score(form: Form) -> tuple[float, float]:
        error = errors[form.title] if form in forms else error_of(form)
        return max(error, LEAST) * cost_of(form), cost_of(form)

    *integers, weights_only = forms
    if not integers:
        return weights_only, errors, ()
    best, found, refined = _refined(min(integers, key=score), score, groups)
    return (best, errors, refined) if found < score(weights_only) else (weights_only, errors, ())


def _refined(
    form: Form, score: Callable[[Form], tuple[float, float]], groups: Sequence[Sequence[str]]
) -> tuple[Form, tuple[float, float], tuple[str, ...]]:
    """Return the form with groups computed in floating point as long as that lowers the score."""
    least, refined = score(form), tuple[str, ...]()
    tried = [group for group in groups if not set(group) <= set(form.recipe.wide)]
    alone = {tuple(group): score(form.with_wide(group)) for group in tried}
    for group in sorted(alone, key=lambda group: alone[group]):
        made = form.with_wide(group)
        found = alone[group] if not refined else score(made)
        if found < least:
            form, least, refined = made, found, (*refined, *group)
    return form, least, refined


def refined_groups(model: ir.Model) -> list[tuple[str, ...]]:
    """Return neighbours among the nodes that multiply integers, few enough to try each group."""
    return grouped([f"{node.name}" for node in integer_nodes(model)], REFINED)


def few_rows(model: ir.Model, computed: Mapping[str, int]) -> frozenset[str]:
    """Return the names of products that have few rows, by what each node computes, and are short, or shorter still."""
    names = set[str]()
    for node in integer_nodes(model):
        weight, count = float_array(node.inputs[1]), computed.get(f"{node.name}", 0)
        if (
            kind_of(node) == "product"
            and weight is not None
            and 0 < count <= max(min(FEW * weight.size, SHORT), SHORTEST)
        ):
            names.add(f"{node.name}")
    return frozenset(names)


def costs(model: ir.Model, seen: Seen, runs: int = 1) -> Callable[[Form], float]:
    """Return what counts the cost of a form, relative to floating point.

    Args:
        model: The graph.
        seen: Values of samples.
        runs: How many samples these are.
    """
    products, rounded = {}, {}
    for node in formed_nodes(model):
        if node.op_type != "Gather":
            name = f"{node.name}"
            products[name], numbers = _counts(node, seen.histograms)
            rounded[name] = numbers * ROUNDING + BEGINNING * (runs if numbers else 1)
    whole = max(sum(products.values()), 1.0)
    integers = {f"{node.name}" for node in integer_nodes(model)}

    def cost_of(form: Form) -> float:
        total = 0.0
        for name, count in products.items():
            whole_number = name in integers and name not in {*form.recipe.wide, *form.recipe.floating}
            total += count * INTEGER + rounded[name] if whole_number else count
        return total / whole

    return cost_of


def _counts(node: ir.Node, ranges: Mapping[str, Histogram]) -> tuple[float, float]:
    """Return how many products a node sums over the samples, and how many numbers it takes and gives.

    A node whose values were not seen, as in a body, counts once for each weight.
    """
    weight = float_array(node.inputs[1])
    assert weight is not None
    taken, given = (_seen(value, ranges) for value in (node.inputs[0], step_behind(node)))
    if node.op_type == "Conv":
        return (given or 1) * weight[0].size, taken + given
    if node.op_type in RECURRENT:
        return max(taken / weight.shape[-1], 1) * 2 * weight.size, taken
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    rows = taken / weight.shape[1 if transposed else -2] if weight.ndim > 1 else 0
    return max(rows, 1) * weight.size, taken


def _seen(value: ir.Value | None, ranges: Mapping[str, Histogram]) -> float:
    histogram = ranges.get(f"{value.name}") if value is not None else None
    return float(histogram.counts.sum()) if histogram else 0.0


def error_over(folds: Sequence[Fold], make: Callable[[Recipe], ir.Model]) -> Callable[[Form], float]:
    """Return what measures a form: the largest error of the folds, each in ranges of its own."""

    def error_of(form: Form) -> float:
        errors = []
        for fold in folds:
            graph = ir.to_proto(make(form.recipe_in(fold.seen))).SerializeToString()
            errors.append(fold.trials.error_of(graph))
        return max(errors)

    return error_of
