"""The choices of a bundle of a user's own ONNX graph: its precision, its engine, its samples, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeglm.devices.profile import Profile
from edgeglm.engines import DIALECTS, ENGINES, EngineName, engine_for
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.foreign.normalize.tidy import load_model
from edgeglm.export.foreign.plan.graph_peak import graph_peak, size_of, weights_only
from edgeglm.export.foreign.read import program
from edgeglm.export.foreign.read.arrays import FORM, Arrays, SampleFiles, largest_shapes, make_samples
from edgeglm.export.foreign.read.graph_file import Source, graph_bytes, read_graph
from edgeglm.export.foreign.read.program import convert_program, is_program, refuse_others
from edgeglm.export.graph.conform import refuse_final
from edgeglm.export.predict.peaks import check_peak
from edgeglm.export.predict.torch_build import with_torch
from edgeglm.export.targets.base import graph_step
from edgeglm.strict_json import fitted
from edgeglm.suggest import nearest_name

PRECISIONS = ("fp32", "fp16", "int8", "int4", "a8w8", "a16w8")
Precision = Literal["fp32", "fp16", "int8", "int4", "a8w8", "a16w8"]
# Activations and weights in integers of these bits, as an NPU computes; `int8` begins with the first.
BITS = ("a8w8", "a16w8")
CALIBRATED = ("int8", *BITS)


@dataclass(frozen=True)
class GraphRequest:
    """The user's request."""

    file: Path
    profile: Profile
    precision: str = "auto"
    calibration: Path | None = None
    max_error: float | None = None

    @property
    def name(self) -> str:
        """The graph's name in the bundle."""
        return fitted(self.file.stem)


@dataclass(frozen=True)
class Plan:
    """The choices: precision and engine, the samples, made up or not, and what the user should know of them.

    ``kept`` is whether the graph is quantized already, and stays as it is.
    """

    request: GraphRequest
    source: Source
    precision: Precision
    engine: EngineName
    samples: Sequence[Arrays]
    peak_bytes: int
    notes: tuple[str, ...] = ()
    kept: bool = False

    @property
    def is_calibrated(self) -> bool:
        """Whether it is quantized here, in ranges of samples."""
        return self.precision in CALIBRATED and not self.kept


def open_graph(request: GraphRequest, budget: int, work: Path) -> Plan:
    """Read the graph and its samples and choose; nothing is written but into `work`.

    Args:
        request: The graph, its samples and the device.
        budget: Bytes of memory.
        work: A folder of the caller's.

    Raises:
        UsageError, DamagedFileError: Of the file, the precision or the samples.
        UnsupportedError: The device does not compute the precision, or takes no shapes that vary and there are no
            samples to fix them by.
        BudgetError: It would take more memory than `budget`.
    """
    engine = graph_engine(request.profile)
    precision = graph_precision(request, engine)
    peak = weights_peak(request.file, precision, engine)
    check_peak(peak, budget, f"for {request.file}")
    source, made = read_source(request.file, work)
    kept = bool(source.integers) and precision in CALIBRATED
    samples = _samples(request, source, engine, finite=precision in CALIBRATED and not kept)
    source = _ranked(source, samples)
    steps = "fp32" if kept else precision
    size = size_of(
        load_model(source.proto, source.shapes), largest_shapes(samples), source.weights_bytes, steps, engine
    )
    peak = max(made_peak(request.file), graph_peak(size, steps, engine))
    check_peak(peak, budget, f"for {request.file} and its samples")
    return Plan(request, source, precision, engine, samples, peak, (*made, *_notes(request, source)), kept)


def weights_peak(file: Path, precision: str, engine: EngineName) -> int:
    """Return the peak resident memory of an export as far as its weights say it."""
    size = _file_bytes(file) if is_program(file) else graph_bytes(file)
    return max(made_peak(file), graph_peak(weights_only(size), precision, engine))


def made_peak(file: Path) -> int:
    """Return what it takes to make a graph of a program; 0 of a graph."""
    return with_torch(program.BASE_BYTES + program.GROWTH * _file_bytes(file)) if is_program(file) else 0


def _file_bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def read_source(file: Path, work: Path) -> tuple[Source, tuple[str, ...]]:
    """Return a graph, or a program as one, and notes on how it was made; raises as `read_graph`."""
    refuse_others(file)
    if not is_program(file):
        return read_graph(file, work), ()
    graph, note = convert_program(file, work)
    return replace(read_graph(graph, work), file=file, sha256=program.hash_program(file)), (note,)


def _samples(request: GraphRequest, source: Source, engine: EngineName, *, finite: bool) -> Sequence[Arrays]:
    """Return the user's samples, or ones that are made up where the graph can be exported by those."""
    if request.calibration:
        return SampleFiles(request.calibration, source.inputs, finite=finite)
    if finite:
        model = load_model(source.proto, source.shapes)
        refuse_final(model, request.profile, engine, str(request.file))
        precision, why = graph_precision(request, engine), "takes ranges of activations"
        if request.precision == "auto":
            why = f"is {precision} for {request.profile.name}, which {why}"
        others = ", or choose --precision fp32" if computes_floats(request.profile, engine) else ""
        raise UsageError(f"--precision {request.precision}", why, f"{FORM} by --calibration{others}")
    if unknown := [value.name for value in source.inputs if value.shape is None]:
        why = f"its input {unknown[0]} has no shape"
        raise UnsupportedError(request.file, why, "give samples by --calibration, which have one")
    if graph_step(engine).SIZED and source.varying:
        title = ENGINES[engine].title
        why = f"its input {source.varying[0]} has dimensions that vary, and {title} builds for sizes that are known"
        raise UnsupportedError(request.file, why, "give samples of one size by --calibration")
    return make_samples(source.inputs)


def _ranked(source: Source, samples: Sequence[Arrays]) -> Source:
    """Return the source with as many dimensions, which vary, as samples have of an input without a shape."""
    if len(source.shapes) == len(source.inputs):
        return source
    ranks = {name: array.ndim for name, array in samples[0].items()}
    inputs = (
        replace(value, shape=tuple(f"{value.name}.{axis}" for axis in range(ranks[value.name])))
        if value.shape is None
        else value
        for value in source.inputs
    )
    return replace(source, inputs=tuple(inputs))


def _notes(request: GraphRequest, source: Source) -> tuple[str, ...]:
    notes = []
    if source.integers:
        notes.append(f"the graph is quantized already, by {', '.join(source.integers)}: its integers are kept")
    if request.calibration is None:
        notes.append("the error is of made-up inputs: give samples by --calibration")
    notes += [
        f"its output {name} is the tensor of scores, a column a class, not maps by ZipMap" for name in source.maps
    ]
    return tuple(notes)


def graph_engine(profile: Profile) -> EngineName:
    """Return the engine on which the profile puts what sees."""
    engine = engine_for(profile.modules.vision.placement.value, profile.engines.value)
    assert engine  # as the profile's reader asks for it
    return engine.name


def computes_floats(profile: Profile, engine: EngineName) -> bool:
    """Tell whether the accelerator of an engine computes in floating point."""
    floats = getattr(profile.limits, f"{ENGINES[engine].placement}_float", None)
    return floats is None or bool(floats.value)


def graph_precision(request: GraphRequest, engine: EngineName) -> Precision:
    """Return the precision that is asked for, or the profile's; raises where the device does not compute it."""
    profile, asked = request.profile, request.precision
    precision = profile.modules.vision.precision.value if asked == "auto" else asked
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {asked}", "is not available for ONNX graphs", nearest_name(asked, PRECISIONS))
    dialect = DIALECTS[ENGINES[engine].dialect]
    if (precision == "int4" and not dialect.contrib) or (precision in BITS and not dialect.integers):
        why = f"{ENGINES[engine].title} has no {precision} of graphs of your own"
        raise UnsupportedError(f"--precision {precision}", why, "choose int8, or another --target")
    placement = ENGINES[engine].placement
    if precision not in CALIBRATED and not computes_floats(profile, engine):
        why = f"the {placement.upper()} of {profile.name} computes no {precision} (limits.{placement}_float)"
        raise UnsupportedError(f"--precision {precision}", why, "choose int8, or another --target")
    return precision  # type: ignore[return-value]
