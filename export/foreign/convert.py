"""Export a user's ONNX graph to a bundle: check, fix, convert to the precision, emit, measure, pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass, NameFixPass, ShapeInferencePass

from edgeglm import manifest
from edgeglm.devices.operator_table import table_for
from edgeglm.devices.profile import Profile
from edgeglm.engines import DIALECTS, ENGINES, EngineName, engine_for
from edgeglm.errors import AccuracyError, UnsupportedError, UsageError
from edgeglm.export.foreign.arrays import FORM, Arrays, common_shapes, hash_samples, make_samples, read_samples
from edgeglm.export.foreign.graph_file import Source, graph_bytes, read_graph, weights_sha256
from edgeglm.export.foreign.graph_precision import Task, convert
from edgeglm.export.graph.check import Violation, check
from edgeglm.export.graph.conform import fit, refusal, refuse_final
from edgeglm.export.graph.fix.mask_range import MaskRange
from edgeglm.export.graph.fix.static_shapes import StaticShapes
from edgeglm.export.predict.peaks import check_peak
from edgeglm.export.prove.onnx_run import run_file
from edgeglm.export.prove.values import relative_error, two_digits
from edgeglm.export.targets.base import graph_step
from edgeglm.export.write.describe import describe_tensors
from edgeglm.export.write.writer import BundleWriter
from edgeglm.scratch import scratch_folder
from edgeglm.strict_json import fitted
from edgeglm.suggest import nearest_name

PRECISIONS = ("fp32", "fp16", "int8")
Precision = Literal["fp32", "fp16", "int8"]
LIBRARIES = ("edgeglm", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript")
# Resident memory of an export, as the command prints it of products with 64 and 256 MiB of weights: without any, and
# for a byte of them. INT8 takes the most.
BASE_BYTES, GROWTH = 480 << 20, 7
# Smaller weights stay in the graph.
INLINE_BYTES = 1024
CHUNK = 16 << 20
MAX_ERROR = 1.0  # as a module's


@dataclass(frozen=True)
class GraphRequest:
    """The user's request."""

    file: Path
    profile: Profile
    precision: str = "auto"
    calibration: Path | None = None

    @property
    def name(self) -> str:
        """The graph's name in the bundle."""
        return fitted(self.file.stem)


@dataclass(frozen=True)
class Plan:
    """The choices: precision and engine, where the graph runs today, and the samples, made up or not."""

    request: GraphRequest
    source: Source
    precision: Precision
    engine: EngineName
    samples: Sequence[Arrays]
    peak_bytes: int


def open_graph(request: GraphRequest, budget: int) -> Plan:
    """Read the graph and its samples and choose; nothing is written.

    Raises:
        UsageError, DamagedFileError: Of the file, the precision or the samples.
        UnsupportedError: The device does not compute the precision, or takes no shapes that vary and there are no
            samples to fix them by.
        BudgetError: It would take more memory than `budget`.
    """
    profile = request.profile
    engine = _engine(profile)
    precision = _precision(request, engine)
    peak = BASE_BYTES + GROWTH * graph_bytes(request.file)
    check_peak(peak, budget, f"for {request.file}")
    source = read_graph(request.file)
    if request.calibration is None and precision == "int8":
        refuse_final(_read(source), profile, engine, str(request.file))
        raise UsageError("--precision int8", "takes ranges of activations", f"{FORM} by --calibration")
    samples = read_samples(request.calibration, source.inputs) if request.calibration else make_samples(source.inputs)
    if graph_step(engine).SIZED and source.varying and request.calibration is None:
        title = ENGINES[engine].title
        why = f"its input {source.varying[0]} has dimensions that vary, and {title} builds for sizes that are known"
        raise UnsupportedError(request.file, why, "give samples of one size by --calibration")
    return Plan(request, source, precision, engine, samples, peak)


def export_graph(
    plan: Plan, target: Path, say: Callable[[str], None]
) -> tuple[manifest.GraphManifest, tuple[Violation, ...], tuple[str, ...]]:
    """Write the bundle; returns its manifest, what was fixed, and what the user should know.

    Raises:
        UnsupportedError: An operator is refused and cannot be fixed, or a converter or builder cannot do it.
        AccuracyError: What was emitted computes garbage.
        UsageError, BudgetError: Of the target or its disk.
    """
    request, notes = plan.request, []
    with scratch_folder("graph") as work:
        say("checking")
        model, fixes = _fitted(plan)
        say(f"converting to {plan.precision}")
        made = _converted(plan, model, work)
        file = _emit(made, work)
        say("measuring")
        error = _measure(plan, file)
        if ENGINES[plan.engine].builds:
            say("building")
        proof, note = graph_step(plan.engine).prove(file, request.file, request.profile, work)
        notes += [note] if note else []
        if request.calibration is None:
            notes.append("the error is of made-up inputs: give samples by --calibration")
        with BundleWriter(target, plan.source.sha256, resume=False) as writer:
            for path in sorted(file.parent.iterdir()):
                _copy(path, writer)
            path = writer.finish(_manifest(plan, made, error, proof))
    written = manifest.parse_manifest((path / manifest.MANIFEST).read_bytes())
    assert isinstance(written, manifest.GraphManifest)
    return written, fixes, tuple(notes)


def _engine(profile: Profile) -> EngineName:
    """Return the engine on which the profile puts what sees."""
    engine = engine_for(profile.modules.vision.placement.value, profile.engines.value)
    assert engine  # as the profile's reader asks for it
    return engine.name


def _precision(request: GraphRequest, engine: EngineName) -> Precision:
    profile, asked = request.profile, request.precision
    precision = profile.modules.vision.precision.value if asked == "auto" else asked
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {asked}", "is not available for ONNX graphs", nearest_name(asked, PRECISIONS))
    placement = ENGINES[engine].placement
    floats = getattr(profile.limits, f"{placement}_float", None)
    if precision != "int8" and floats and not floats.value:
        why = f"the {placement.upper()} of {profile.name} computes no {precision} (limits.{placement}_float)"
        raise UnsupportedError(f"--precision {precision}", why, "choose int8, or another --target")
    return precision  # type: ignore[return-value]


def _read(source: Source) -> ir.Model:
    """Return the graph without functions, in known shapes."""
    model = ir.from_proto(source.proto)
    for each in (InlinePass(), ClearMetadataAndDocStringPass(), NameFixPass()):
        each(model)
    for value, known in zip(model.graph.inputs, source.inputs, strict=False):
        value.shape = ir.Shape(known.shape)
    ShapeInferencePass()(model)
    return model


def _fitted(plan: Plan) -> tuple[ir.Model, tuple[Violation, ...]]:
    """Return the graph as the engine takes it: checked and fixed."""
    model = _read(plan.source)
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


def _converted(plan: Plan, model: ir.Model, work: Path) -> ir.Model:
    """Return the graph in its precision, checked again: what a converter wrote must run too."""
    if plan.precision == "fp32":
        return model
    if plan.precision == "int8":
        MaskRange()(model)
    graph, samples, output = work / "graph.onnx", work / "samples", work / "converted.onnx"
    samples.mkdir()
    for index, sample in enumerate(plan.samples if plan.precision == "int8" else ()):
        np.savez(samples / f"{index}.npz", **sample)  # type: ignore[arg-type]
    onnx.save(ir.to_proto(model), graph)
    convert(Task(plan.precision, str(graph), str(samples), plan.engine, str(output)))
    made = ir.load(output)
    for each in (ClearMetadataAndDocStringPass(), NameFixPass(), ir.passes.common.TopologicalSortPass()):
        each(made)
    profile, name = plan.request.profile, str(plan.request.file)
    table = table_for(profile, plan.engine)
    if table and (violations := check(made, table)):
        raise refusal(f"{name} in {plan.precision}", profile, violations)
    if plan.precision == "int8" and not any(node.op_type == "QuantizeLinear" for node in made.graph):
        why = "static INT8 has no form for any of its operators"
        raise UnsupportedError(name, why, "export it in fp16 or fp32")
    return made


def _emit(model: ir.Model, work: Path) -> Path:
    folder = work / "graph"
    folder.mkdir()
    large = any(
        value.const_value is not None and value.const_value.nbytes > INLINE_BYTES
        for value in model.graph.initializers.values()
    )
    file = folder / "model.onnx"
    ir.save(model, file, external_data="weights.bin" if large else None, size_threshold_bytes=INLINE_BYTES)
    return file


def _measure(plan: Plan, file: Path) -> float:
    """Return the largest relative error of a floating-point output over the samples, against the original."""
    worst = 0.0
    for sample in plan.samples:
        try:
            want = run_file(plan.request.file, sample)
        except Exception as error:
            why = f"ONNX Runtime cannot run it on the samples: {str(error).splitlines()[0]}"
            raise UnsupportedError(plan.request.file, why, "give samples that it takes by --calibration") from error
        try:
            got = run_file(file, sample)
        except Exception as error:
            why = f"ONNX Runtime cannot run it in {plan.precision}: {str(error).splitlines()[0]}"
            raise UnsupportedError(plan.request.file, why, "export it in another precision") from error
        for name, array in want.items():
            if array.dtype.kind == "f" and array.size:
                worst = max(worst, relative_error(got[name], array))
    if worst > MAX_ERROR:
        why = f"its output is {worst:.2g} away from the original's, relative to it"
        raise AccuracyError(plan.request.file, why, f"use a higher precision than {plan.precision}")
    return two_digits(worst)


def _copy(path: Path, writer: BundleWriter) -> None:
    """Write the weights into the bundle, piece by piece."""
    relative, size = f"graph/{path.name}", path.stat().st_size
    if size <= CHUNK:
        writer.small(relative, path.read_bytes())
        return
    output = writer.file(relative, size)
    with open(path, "rb") as file:
        for offset in range(0, size, CHUNK):
            output.pwrite(offset, memoryview(file.read(CHUNK)))


def _manifest(plan: Plan, model: ir.Model, error: float, proof: str | None) -> manifest.GraphManifest:
    request, source = plan.request, plan.source
    engine = ENGINES[plan.engine]
    if DIALECTS[engine.dialect].integers:  # as long as it is not compiled
        engine = engine.everywhere
    ShapeInferencePass()(model)
    inputs, outputs = (describe_tensors(list(values)) for values in (model.graph.inputs, model.graph.outputs))
    module = manifest.Module(
        name="graph",
        file="graph/model.onnx",
        format=engine.reads,
        precision=plan.precision,
        placement=engine.placement,
        engine=engine.name,
        dialect=engine.dialect,
        inputs=inputs,
        outputs=outputs,
        max_relative_error=error,
    )
    opset = next((each.version for each in source.proto.opset_import if each.domain in ("", "ai.onnx")), 1)
    return manifest.GraphManifest(
        graph=manifest.Graph(request.name, opset),
        proof=proof,
        profile=request.profile,
        modules=(module,),
        provenance=manifest.Provenance(
            config_sha256=source.sha256,
            weights_sha256=weights_sha256(source.proto),
            calibration_sha256=hash_samples(plan.samples) if request.calibration else None,
            versions={name: metadata.version(name) for name in LIBRARIES},
            options={"precision": request.precision},
        ),
        files={},
    )
