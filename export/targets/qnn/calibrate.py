"""Calibrate the image encoder for an NPU: the ranges of its values, and its bits by measured error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeglm.errors import UsageError
from edgeglm.export.calibrate.calibrator import examples_hash, read_screens
from edgeglm.export.calibrate.value_ranges import Ranges, SeenValues
from edgeglm.export.choose.precision import NPU_PRECISIONS, is_measured, parse_precisions
from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.prepare.module import serialize
from edgeglm.export.prepare.preparation import prepare, probe_module
from edgeglm.export.prepare.types import WEIGHTS, Calibration, Opened, Prepared, PreparedModule, Request
from edgeglm.export.prove.probes import Example, sample_prompts, vision_inputs
from edgeglm.export.prove.reference import OriginalWeights, Segment
from edgeglm.export.prove.values import Values, feeds, passed_on, two_digits
from edgeglm.export.quantize.qdq import PRODUCT
from edgeglm.export.samples.screenshots import Sample
from edgeglm.export.targets.qnn.compile import (
    CONTEXT,
    FEATURES,
    MIN_COSINE,
    PIXELS,
    error_of,
    least_cosine,
    simulated_count,
    wrong,
)
from edgeglm.export.targets.qnn.compiler import compile_file, title
from edgeglm.export.write.disk import write_all
from edgeglm.export.write.layout import write
from edgeglm.roles import encoder_of
from edgeglm.runtimes.engines.qnn.engine import chip_of
from edgeglm.scratch import scratch_folder

# Screens on which a precision is tried.
COMPARED = 2


@dataclass(frozen=True)
class Trial:
    """The result of a precision: the relative error on the compared screens, and the least cosine, if simulated."""

    precision: str
    error: float
    cosine: float | None

    @property
    def is_right(self) -> bool:
        """Whether the compiled graph computes what its integers say, as far as that was looked at."""
        return self.cosine is None or self.cosine >= MIN_COSINE


def npu_samples(opened: Opened, examples: Sequence[Example]) -> Sequence[Sample]:
    """Return what the NPU's module is calibrated with: the samples that were given, and of the demo its own.

    Raises:
        UsageError: There are none.
        UnsupportedError: The compiler is not installed.
    """
    title()
    samples = [example for example in examples if isinstance(example, Sample)]
    if samples:
        return samples
    if opened.request.shipped:
        return read_screens(opened.request.shipped.calibration)
    why = f"{opened.request.profile.name} has vision on its NPU, which takes ranges of activations"
    raise UsageError("--calibration", why, "give samples by --calibration FILE")


def calibrate(opened: Opened, examples: Sequence[Example], found: Calibration | None) -> tuple[Request, Calibration]:
    """Return the request with the precision that has the least error, and the module's calibration.

    Where the user has named a precision it is that one, and no other is tried.

    Args:
        opened: The export.
        examples: The user's samples; the demo has its own.
        found: A calibration of other modules, to which this one is added.

    Raises:
        UsageError: Something in the model is not finite on the samples.
        UnsupportedError, BudgetError: As `compile_file`.
        AccuracyError: No precision computes on the simulator what its integers say.
    """
    prepared, samples = prepare(opened), npu_samples(opened, examples)
    values, shown = _walk(prepared, samples)
    base = found or Calibration(examples_hash(samples), {}, {})
    calibration = replace(base, values=values, shown=shown)
    named = next(choice.precision for choice in opened.choices if choice.placement == "npu")
    compared = NPU_PRECISIONS if is_measured(opened.request.precision) else (named,)
    trials = [_try(prepared, precision, calibration) for precision in compared]
    right = [trial for trial in trials if trial.is_right]
    if not right:
        raise wrong(min(trial.cosine or 0.0 for trial in trials), " and ".join(compared))
    best = min(right, key=lambda trial: trial.error)
    candidates = {trial.precision: two_digits(trial.error) for trial in trials}
    return _with_precision(opened.request, best.precision), replace(calibration, candidates=candidates)


def _walk(prepared: Prepared, samples: Sequence[Sample]) -> tuple[Ranges, list[tuple[Values, Values]]]:
    """Return the original over the pictures, a segment at a time: ranges of all values, and both ends of a few."""
    weights = OriginalWeights(replace(prepared.checkpoint, keep_pages=True))
    pictures = [vision_inputs(prepared, prompt) for prompt in sample_prompts(prepared, samples, answered=False)]
    ranges: Ranges = {}
    for name, graph in segments(stack_of(encoder_of("image"), prepared.probe), "portable"):
        segment, seen = Segment(graph, weights), SeenValues()
        for values in pictures:
            fed = feeds(graph.graph.inputs, values)
            with np.errstate(all="ignore"):  # what is not finite is said below
                computed = segment.run_all(fed)
            try:
                seen.see(dict(_named(graph, name, {**(fed if name == "front" else {}), **computed}, weights)))
            except ValueError as error:
                raise UsageError("--calibration", str(error), "check the model and the samples") from error
            values.update(passed_on({f"{output.name}": computed[f"{output.name}"] for output in graph.graph.outputs}))
        for bits, named in seen.ranges().items():
            ranges.setdefault(bits, {}).update(named)
    compared = pictures[:COMPARED]
    return ranges, [({PIXELS: picture[PIXELS]}, {FEATURES: picture[FEATURES]}) for picture in compared]


def _named(graph: ir.Model, segment: str, values: Values, weights: OriginalWeights) -> Iterator[tuple[str, Any]]:
    """Yield the values by the names that they have in the whole graph, and the products that a bias is added to."""
    inputs = {f"{value.name}" for value in graph.graph.inputs}
    for name, array in values.items():
        own = name.startswith(f"{segment}.") or name == "features"
        if own or (segment == "front" and name in inputs):
            yield name, array
        elif name not in inputs:  # an output, which the next segment knows by its bare name
            yield f"{segment}.{name}", array
    for node in graph.graph:
        if node.op_type == "Linear" and node.attributes["bias"].as_int():
            (weight,) = node.attributes["weights"].as_strings()
            output = f"{node.outputs[0].name}"
            yield f"{output}{PRODUCT}", values[output] - weights.vector(f"{weight}.bias")


def _try(prepared: Prepared, precision: str, calibration: Calibration) -> Trial:
    """Return the module at the probe's grid, in a folder that is gone afterwards."""
    module = probe_module(prepared, precision, calibration)
    count = simulated_count(module, calibration.shown)
    inputs = [given for given, _ in calibration.shown[: count or None]]
    with scratch_folder("npu") as place:
        _write(module, place)
        model, context = place / "model.onnx", CONTEXT if count else None
        done = compile_file(model, context, chip_of(prepared.request.profile), inputs, simulate=count > 0)
    return Trial(precision, error_of(done.simulated or done.onnx, calibration.shown), least_cosine(done))


def _write(module: PreparedModule, folder: Path) -> None:
    assert module.graph
    (folder / "model.onnx").write_bytes(serialize(module.graph))
    with open(folder / WEIGHTS, "w+b") as file:
        file.truncate(module.layout.nbytes)
        output = _Plain(file.fileno())
        for job, offsets in zip(module.jobs, module.layout.offsets, strict=True):
            write((task() for task in job.tasks()), job.stored, offsets, output)


@dataclass(frozen=True)
class _Plain:
    """A file that no one resumes."""

    descriptor: int

    def pwrite(self, offset: int, data: memoryview) -> None:
        """Write all of it."""
        write_all(self.descriptor, data.cast("B"), offset)


def _with_precision(request: Request, precision: str) -> Request:
    """Return the request with the vision module's precision named."""
    asked = {name: value for name, value in parse_precisions(request.precision).items() if name != encoder_of("image")}
    said = [value if name == "*" else f"{name}={value}" for name, value in asked.items()]
    return replace(request, precision=",".join([*said, f"{encoder_of('image')}={precision}"]))
