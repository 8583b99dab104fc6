"""Fit a graph to the engine of a device: check it, fix what can be fixed, and refuse the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass, RemoveUnusedNodesPass
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.devices.operator_table import Table, table_for
from edgeglm.devices.profile import Limits, Profile
from edgeglm.engines import ENGINES, EngineName
from edgeglm.errors import UnsupportedError
from edgeglm.export.graph.check import check
from edgeglm.export.graph.fix import decompose_functions, decompose_gelu, decompose_norms, fuse_gelu, fuse_norms
from edgeglm.export.graph.fix.patch_matmul import PatchMatMul
from edgeglm.export.graph.fix.reduce_rank import ReduceRank
from edgeglm.export.graph.fix.static_shapes import StaticShapes
from edgeglm.export.graph.passes.infer_types import InferTypes
from edgeglm.export.graph.passes.merge_reshapes import MergeReshapes
from edgeglm.export.graph.violation import WHOLE, Violation

Shapes = Mapping[str, tuple[int, ...]]
# The converter writes nodes for constants, and its nodes have no names, for which tools ask.
TIDYING = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), RemoveUnusedNodesPass(), NameFixPass()
# From this opset on, an attribute of Resize says from where it takes its values.
PLACED = 11
# Gives the fixed graph, or None where it finds nothing to fix.
Fix = Callable[[ir.Model], ir.Model | None]


def fit(
    model: ir.Model, profile: Profile, engine: EngineName, name: str, shapes: Shapes | None = None
) -> tuple[ir.Model, tuple[Violation, ...]]:
    """Return the graph as the engine takes it on the device, and what was fixed; itself, where nothing had to be.

    Args:
        model: The graph; its weights need not be there, and then what would need them is not fixed.
        profile: The device.
        engine: Which of its engines.
        name: What messages call the graph.
        shapes: Sizes of its inputs, for a device that takes no others.

    Raises:
        UnsupportedError: A node cannot be fixed; a line for each.
    """
    table = table_for(profile, engine)
    if table is None:
        return model, ()
    limits = _limits(profile, engine)
    model, applied = _preferred(model, engine)
    violations = check(model, table, limits)
    if violations:
        model = model.clone()
        NameFixPass()(model)  # by which a violation is known again
        violations = check(model, table, limits)
    for number, (label, fix) in enumerate(_fixes(table, shapes or {})):
        if number and (final := _final(violations)):  # behind the first, which is the sizes of samples
            raise refusal(name, profile, final)
        fixed = fix(model.clone()) if violations else None
        left = check(fixed, table, limits) if fixed else violations
        if fixed and len(left) < len(violations):
            applied += [violation.fixed(label) for violation in violations if violation not in left]
            model, violations = fixed, left
    if violations:
        raise refusal(name, profile, violations)
    return model, tuple(applied)


def refuse_final(model: ir.Model, profile: Profile, engine: EngineName, name: str) -> None:
    """Raise UnsupportedError for what no fix can mend; the arguments are those of `fit`."""
    table = table_for(profile, engine)
    if final := _final(check(model, table, _limits(profile, engine)) if table else []):
        raise refusal(name, profile, final)


def _final(violations: Sequence[Violation]) -> list[Violation]:
    """Return what is final, and what else there is against the same nodes."""
    nodes = {violation.node for violation in violations if violation.is_final}
    return [violation for violation in violations if violation.node in nodes]


def _limits(profile: Profile, engine: EngineName) -> Limits | None:
    """Return the board's limits, which are those of its first engine."""
    return profile.limits if engine == profile.engines.value[0] else None


def refusal(name: str, profile: Profile, violations: Sequence[Violation]) -> UnsupportedError:
    """Return the error for what cannot be fixed: the first violation, and a line for each of the others."""
    first, *more = [
        UnsupportedError(f"{name} on {profile.name}", f"{violation}", violation.remedy) for violation in violations
    ]
    return UnsupportedError(first.what, first.why, first.remedy, more)


def _preferred(model: ir.Model, engine: EngineName) -> tuple[ir.Model, list[Violation]]:
    """Replace forms that an engine takes and computes wrong, which are no violation of any node."""
    if not ENGINES[engine].norms_as_operators:
        return model, []
    fixed = _with(fuse_norms.FuseNorms(), fuse_norms.RMS_NORM_OPSET)(model.clone())
    if fixed is None:
        return model, []
    why = "the NPU computes some norms that are not one operator wrong, without an error"
    return fixed, [Violation("norms", WHOLE, "decomposed", why, fix="one operator each")]


def _fixes(table: Table, shapes: Shapes) -> Iterator[tuple[str, Fix]]:
    """Yield the fixes in the order in which they are tried; a fix that removes no violation is discarded."""
    yield "the sizes of the samples", _with(StaticShapes(shapes))
    yield "patches times a matrix", _with(PatchMatMul())
    yield "GELU as one operator", _with(fuse_gelu.FuseGelu(), fuse_gelu.OPSET)
    yield "GELU decomposed", _with(decompose_gelu.DecomposeGelu())
    yield "ONNX's definition of it", _defined({*table.operators})
    yield "norms as one operator", _with(fuse_norms.FuseNorms(), fuse_norms.RMS_NORM_OPSET)
    yield "norms decomposed", _with(decompose_norms.DecomposeNorms())
    if table.max_rank:
        yield "fewer dimensions", _with(ReduceRank(table.max_rank.value), then=MergeReshapes())
    if table.opset:
        for opset in reversed(table.opset.value):
            yield f"opset {opset}", to_opset(opset)


def _with(fix: ir.passes.PassBase, opset: int = 0, then: ir.passes.PassBase | None = None) -> Fix:
    """Return a pass, in a graph of at least an opset where it can be had, and what tidies up behind it."""

    def apply(model: ir.Model) -> ir.Model | None:
        if model.graph.opset_imports.get("", opset) < opset:
            model = to_opset(opset)(model) or model
        if not fix(model).modified:
            return None
        NameFixPass()(model)
        _infer(model)
        if then:
            then(model)
        return model

    return apply


def _defined(known: Collection[str]) -> Fix:
    """Return what writes operators that are not known by others, where ONNX defines them so."""

    def apply(model: ir.Model) -> ir.Model | None:
        if model.graph.opset_imports.get("", decompose_functions.OPSET) < decompose_functions.OPSET:
            model = to_opset(decompose_functions.OPSET)(model) or model
        return decompose_functions.decompose_functions(model, known)

    return apply


def to_opset(opset: int) -> Fix:
    """Return the graph in another opset, as far as ONNX's converter knows the way, and all weights are there."""

    def convert(model: ir.Model) -> ir.Model | None:
        if model.graph.opset_imports.get("", opset) == opset:
            return None
        try:
            proto = onnx.version_converter.convert_version(ir.to_proto(model), opset)
        except Exception:
            return None
        converted = ir.from_proto(proto)
        if model.graph.opset_imports.get("", opset) < PLACED <= opset:
            _place_as_before(converted)
        for tidying in TIDYING:
            tidying(converted)
        _infer(converted)
        return converted

    return convert


def _place_as_before(model: ir.Model) -> None:
    """Let Resize take values from where it did before it had an attribute for that; the converter forgets it."""
    for node in RecursiveGraphIterator(model.graph):
        if (node.domain, node.op_type) == ("", "Resize"):
            scales = ir.convenience.get_const_tensor(node.inputs[2]) if node.inputs[2] is not None else None
            shrinks = scales is not None and bool((scales.numpy() < 1).any())
            modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
            node.attributes.update({name: ir.AttrString(name, mode) for name, mode in modes.items()})
            node.replace_input_with(1, None)  # the region, which this mode does not read


def _infer(model: ir.Model) -> None:
    """Infer shapes and types of new values if all weights are there; else the check does not see them."""
    if all(value.const_value is not None for value in model.graph.initializers.values()):
        InferTypes()(model)
