"""The choices of a bundle of a user's own ONNX graph: its precision, its engine, its samples, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeglm.devices.profile import Profile
from edgeglm.engines import ENGINES, EngineName, engine_for
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.foreign.arrays import FORM, Arrays, make_samples, read_samples
from edgeglm.export.foreign.graph_file import Source, graph_bytes, load_model, read_graph
from edgeglm.export.graph.conform import refuse_final
from edgeglm.export.predict.peaks import check_peak
from edgeglm.export.targets.base import graph_step
from edgeglm.strict_json import fitted
from edgeglm.suggest import nearest_name

PRECISIONS = ("fp32", "fp16", "int8")
Precision = Literal["fp32", "fp16", "int8"]
# Resident memory of an export, as the command prints it of products with 64 and 256 MiB of weights: without any, and
# for a byte of them. INT8 takes the most.
BASE_BYTES, GROWTH = 480 << 20, 7


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
        refuse_final(load_model(source), profile, engine, str(request.file))
        raise UsageError("--precision int8", "takes ranges of activations", f"{FORM} by --calibration")
    samples = read_samples(request.calibration, source.inputs) if request.calibration else make_samples(source.inputs)
    if graph_step(engine).SIZED and source.varying and request.calibration is None:
        title = ENGINES[engine].title
        why = f"its input {source.varying[0]} has dimensions that vary, and {title} builds for sizes that are known"
        raise UnsupportedError(request.file, why, "give samples of one size by --calibration")
    return Plan(request, source, precision, engine, samples, peak)


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
