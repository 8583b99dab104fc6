"""Fit a user's graph to its engine, and convert it to its precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass, TopologicalSortPass

from edgeglm.devices.operator_table import table_for
from edgeglm.engines import DIALECTS, ENGINES
from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export.foreign.error import MAX_ERROR, calibrating, measured, open_original
from edgeglm.export.foreign.graph_precision import Task, convert
from edgeglm.export.foreign.measure.difference import Comparison, worst_of
from edgeglm.export.foreign.normalize.fold import fold
from edgeglm.export.foreign.normalize.single import is_other, other_ends, to_single
from edgeglm.export.foreign.normalize.tidy import load_model
from edgeglm.export.foreign.plan.graph_peak import SCALES_OPSET
from edgeglm.export.foreign.plan.graph_plan import Plan, computes_floats
from edgeglm.export.foreign.quantize.formless import list_formless
from edgeglm.export.foreign.quantize.integers import has_blocks
from edgeglm.export.foreign.quantize.plain_products import make_plain
from edgeglm.export.foreign.read.arrays import Arrays, common_shapes
from edgeglm.export.foreign.read.made import Made, write
from edgeglm.export.graph.check import check
from edgeglm.export.graph.conform import fit, refusal, to_opset
from edgeglm.export.graph.fix.mask_range import MaskRange
from edgeglm.export.graph.fix.static_shapes import StaticShapes
from edgeglm.export.graph.violation import Violation
from edgeglm.export.prove.onnx_run import run_file
from edgeglm.export.targets.base import graph_step

X86 = "x86_64"
ROUNDED_ERROR = 0.02  # of fp16 against fp32
# Opsets that are tried in the place of one in which DequantizeLinear has no axis.
RAISED_OPSETS = (13, 14, 15, 16, 17)


class NoFormError(UnsupportedError):
    """The precision has no form for any operator of a graph."""


def converted(
    plan: Plan, model: ir.Model, work: Path, show: Callable[[float], None] = lambda done: None
) -> tuple[Plan, ir.Model, Made]:
    """Return the plan and the graph in its precision: in fp32 where the user asked for no other and it has no form."""
    try:
        return plan, *convert_model(plan, model, work, show)
    except NoFormError as error:
        if plan.request.precision != "auto" or not computes_floats(plan.request.profile, plan.engine):
            raise
        note = f"{error.why}: it is in fp32"
        return replace(plan, precision="fp32", notes=(*plan.notes, note)), model, Made()


def fit_model(plan: Plan) -> tuple[ir.Model, tuple[Violation, ...]]:
    """Return the graph as the engine takes it: checked and fixed."""
    model = load_model(plan.source.proto, plan.source.shapes)
    fold(model, plan.engine)
    shapes = common_shapes(plan.samples) if plan.request.calibration else {}
    model, fixes = fit(model, plan.request.profile, plan.engine, str(plan.request.file), shapes)
    if graph_step(plan.engine).SIZED and plan.source.varying:
        model, fixed = _sized(plan, model, shapes)
        fixes = (*fixes, *fixed)
    return model, fixes


def _sized(plan: Plan, model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> tuple[ir.Model, list[Violation]]:
    """Fix the sizes to those of the samples, for an engine that a bundle has no ranges for."""
    StaticShapes(shapes)(model)
    violations = [
        Violation(
            f"{value.name}",
            "graph",
            "input",
            f"{ENGINES[plan.engine].title} builds for sizes that are known",
            fix="those of the samples",
        )
        for value in model.graph.inputs
        if value.name in plan.source.varying
    ]
    for value in model.graph.inputs:
        if any(not isinstance(size, int) for size in value.shape or ()):
            why = f"its input {value.name} varies, and the samples have more than one size of it"
            raise UnsupportedError(plan.request.file, why, "give samples of one size by --calibration")
    return model, violations


def convert_model(plan: Plan, model: ir.Model, work: Path, show: Callable[[float], None]) -> tuple[ir.Model, Made]:
    """Return the graph in its precision, checked again: what a converter wrote must run too."""
    if plan.precision == "fp32" or plan.kept:
        return model, Made()
    ours = DIALECTS[ENGINES[plan.engine].dialect].contrib
    if plan.precision != "fp16":
        model = _raised(plan, _single(plan, model, work), work)
        if ours:
            model = model.clone()  # as the graph stays as it is where no form is found
            make_plain(model)
        else:  # a mask has a scale there
            MaskRange()(model)
    if plan.precision == "int4" and not has_blocks(model):
        why = "INT4 is for matrix products with constant weights of 64 or more inputs, and it has none"
        raise UnsupportedError(plan.request.file, why, "export it in int8")
    graph, output = work / "graph.onnx", work / "converted.onnx"
    calibrated = calibrating(len(plan.samples)) if plan.is_calibrated else []
    samples, held = _saved(plan, calibrated, work / "samples"), _saved(plan, measured(plan), work / "held")
    onnx.save(ir.to_proto(model), graph)
    limit = MAX_ERROR if plan.request.max_error is None else plan.request.max_error
    pairs = plan.request.profile.cpu.architecture.value == X86
    floats = computes_floats(plan.request.profile, plan.engine)
    places = str(output), str(plan.source.original), held
    try:
        found = convert(Task(plan.precision, str(graph), samples, plan.engine, *places, limit, floats, pairs), show)
    except UnsupportedError:
        _check_original(plan)  # which a converter's message does not name, if that is the cause
        raise
    made = ir.load(output)
    for tidying in (ClearMetadataAndDocStringPass(), NameFixPass(), TopologicalSortPass()):
        tidying(made)
    profile, name = plan.request.profile, str(plan.request.file)
    table = table_for(profile, plan.engine)
    if table and (violations := check(made, table)):
        raise refusal(f"{name} in {plan.precision}", profile, violations)
    title = plan.precision.upper()
    rounded = found.share or any(node.op_type == "QuantizeLinear" for node in made.graph)
    if plan.precision != "fp16" and not rounded:
        if found.unreached:
            raise NoFormError(name, "no sample reaches its weights", "give samples that do by --calibration")
        if found.untouched:
            why = f"in {title} any of its weights takes an output further than {limit:.2g} from the original's"
            raise AccuracyError(name, why, "export it in fp16 or fp32")
        named = list_formless(model)
        why = f"{title} has no form for any of its operators{': ' if named else ''}{named}"
        raise NoFormError(name, why, "export it in fp16 or fp32")
    return made, found


def _check_original(plan: Plan) -> None:
    """Raise UnsupportedError where ONNX Runtime does not load the user's graph, or does not run it on a sample."""
    run = open_original(plan)
    for sample in plan.samples:
        run(sample)


def _saved(plan: Plan, indices: Sequence[int], folder: Path) -> str:
    """Write samples for the converter, and return their folder."""
    folder.mkdir()
    for index in indices:
        write(folder / f"{index}.npz", plan.samples[index])
    return str(folder)


def _single(plan: Plan, model: ir.Model, work: Path) -> ir.Model:
    """Return a graph in fp16 or fp64 as one in fp32, where it computes the same, or where integers are all there is.

    Raises:
        UnsupportedError: An NPU, which has no cast of them, would have to take or give such values.
    """
    if not is_other(model):
        return model
    single, file = model.clone(), work / "single.onnx"
    to_single(single)
    if DIALECTS[ENGINES[plan.engine].dialect].integers:
        if ends := other_ends(model):
            title = ENGINES[plan.engine].title
            why = f"its inputs or outputs {', '.join(ends)} are in fp16 or fp64, of which {title} has none"
            raise UnsupportedError(plan.request.file, why, "export it with inputs and outputs in fp32")
        return single
    ir.save(single, file)
    sample, comparison = plan.samples[0], Comparison()
    want, got = open_original(plan)(sample), _tried(file, sample)
    if want.keys() != got.keys():
        return model
    comparison.add(want, got)
    worst = worst_of(comparison.differences())
    return single if worst is None or (worst.error or 0.0) < ROUNDED_ERROR else model


def _raised(plan: Plan, model: ir.Model, work: Path) -> ir.Model:
    """Return the graph in an opset in which a scale may have a channel, where it computes the same.

    Raises:
        UnsupportedError: ONNX's converter does not know the way.
    """
    if model.graph.opset_imports.get("", 1) >= SCALES_OPSET:
        return model
    sample, file = plan.samples[0], work / "raised.onnx"
    want = open_original(plan)(sample)
    for opset in RAISED_OPSETS:
        raised = to_opset(opset)(model.clone())
        if raised is not None:
            ir.save(raised, file)
            if _same(want, _tried(file, sample)):
                return raised
    why = f"INT8 takes opset {SCALES_OPSET} or newer, and ONNX's converter does not bring its operators there"
    raise UnsupportedError(plan.request.file, why, "export it again in a newer opset, or in fp16 or fp32")


def _tried(file: Path, sample: Arrays) -> dict[str, NDArray[Any]]:
    try:
        return run_file(file, sample)
    except Exception:  # the engine's own exceptions have no common base
        return {}


def _same(want: dict[str, NDArray[Any]], got: dict[str, NDArray[Any]]) -> bool:
    return all(
        name in got and np.allclose(got[name], array, rtol=1e-3, atol=1e-4, equal_nan=array.dtype.kind == "f")
        for name, array in want.items()
    )
