"""Export a user's ONNX graph to a bundle: check, fix, convert to the precision, emit, measure, pack."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import onnx_ir as ir

from edgeglm import manifest
from edgeglm.engines import DIALECTS, ENGINES
from edgeglm.export.foreign.convert import converted, fit_model
from edgeglm.export.foreign.error import Accuracy, check_error, measure, measured
from edgeglm.export.foreign.plan.graph_plan import Plan
from edgeglm.export.foreign.read.arrays import hash_samples
from edgeglm.export.foreign.read.graph_file import weights_sha256
from edgeglm.export.foreign.read.made import Made
from edgeglm.export.foreign.read.program import is_program
from edgeglm.export.graph.passes.infer_types import InferTypes
from edgeglm.export.graph.violation import Violation
from edgeglm.export.prove.onnx_run import run_file
from edgeglm.export.targets.base import Proof, graph_step
from edgeglm.export.write.describe import describe_tensors
from edgeglm.export.write.writer import BundleWriter
from edgeglm.strict_json import fitted

LIBRARIES = ("edgeglm", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript")
# Smaller weights stay in the graph.
INLINE_BYTES = 1024
CHUNK = 16 << 20
PROVEN = 1  # samples that an engine's proof takes: a simulator is slow


def export_graph(
    plan: Plan, target: Path, work: Path, say: Callable[[str, float | None], None]
) -> tuple[manifest.GraphManifest, tuple[Violation, ...], tuple[str, ...]]:
    """Write the bundle; returns its manifest, what was fixed, and what the user should know.

    Args:
        plan: The choices.
        target: The bundle's folder.
        work: A folder for what is needed meanwhile.
        say: Told each stage, and how far it is where that is known.

    Raises:
        UnsupportedError: An operator is refused and cannot be fixed, or a converter or builder cannot do it.
        AccuracyError: What was emitted is too far from the original.
        UsageError, BudgetError: Of the target or its disk.
    """
    request = plan.request
    say("checking", None)
    model, fixes = fit_model(plan)
    stage = f"converting to {plan.precision}"
    say(stage, None)
    plan, made, found = converted(plan, model, work, lambda done: say(stage, done))
    file = _emit(made, work)
    say("measuring", None)
    accuracy = measure(plan, file)
    check_error(plan, accuracy, found.blamed)
    notes = [*plan.notes, *accuracy.notes(found.blamed), *found.notes()]
    if ENGINES[plan.engine].builds:
        say("building", None)
    samples = [plan.samples[index] for index in measured(plan)[:PROVEN]]
    proof = graph_step(plan.engine).prove(file, request.file, request.profile, samples, work)
    notes += [proof.note] if proof.note else []
    with BundleWriter(target, plan.source.sha256, resume=False) as writer:
        for path in sorted(file.parent.iterdir()):
            _copy(path, writer)
        path = writer.finish(_manifest(plan, made, file, accuracy, found, proof))
    written = manifest.parse_manifest((path / manifest.MANIFEST).read_bytes())
    assert isinstance(written, manifest.GraphManifest)
    return written, fixes, tuple(notes)


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


def _complete_outputs(plan: Plan, model: ir.Model, file: Path) -> None:
    """Give outputs of which inference knows no type or shape those that they have for a sample."""
    unknown = [value for value in model.graph.outputs if value.shape is None or value.dtype is None]
    computed = run_file(file, plan.samples[0]) if unknown else {}
    for value in unknown:
        array = computed[f"{value.name}"]
        varies = bool(plan.source.varying)
        value.shape = ir.Shape([f"{value.name}.{axis}" if varies else size for axis, size in enumerate(array.shape)])
        value.dtype = ir.DataType.from_numpy(array.dtype)


def _manifest(
    plan: Plan, model: ir.Model, file: Path, accuracy: Accuracy, found: Made, proof: Proof
) -> manifest.GraphManifest:
    request, source = plan.request, plan.source
    made_by = ("torch",) if is_program(request.file) else ()
    engine = ENGINES[plan.engine]
    if DIALECTS[engine.dialect].integers and not proof.compiled:
        engine = engine.everywhere
    InferTypes()(model)
    _complete_outputs(plan, model, file)
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
        fp32_values=tuple(map(fitted, (*found.wide, *found.untouched, *found.unreached))),
        tried=found.tried,
        compiled=proof.compiled,
        max_relative_error=accuracy.error,
    )
    opset = next((opset_id.version for opset_id in source.proto.opset_import if opset_id.domain in ("", "ai.onnx")), 1)
    return manifest.GraphManifest(
        graph=manifest.Graph(request.name, opset),
        proof=proof.text,
        accuracy=accuracy.described(),
        profile=request.profile,
        modules=(module,),
        provenance=manifest.Provenance(
            config_sha256=source.sha256,
            weights_sha256=weights_sha256(source.proto),
            calibration_sha256=hash_samples(plan.samples) if request.calibration else None,
            versions={name: metadata.version(name) for name in (*LIBRARIES, *made_by)},
            options={"precision": request.precision},
        ),
        files={},
    )
