"""The picture encoder for an NPU: the ranges of its values, its bits by measured error, and what the compiler makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm import manifest
from edgeglm.errors import AccuracyError, UsageError
from edgeglm.export.calibrate.calibrator import examples_hash, read_screens
from edgeglm.export.calibrate.value_ranges import Ranges, SeenValues
from edgeglm.export.choose.precision import NPU_PRECISIONS, is_measured, parse_precisions
from edgeglm.export.demo.samples import DATA, Sample
from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.prepare.module import serialize
from edgeglm.export.prepare.preparation import prepare, probe_module
from edgeglm.export.prepare.types import WEIGHTS, Arrays, Calibration, Opened, Prepared, PreparedModule, Request
from edgeglm.export.prove.probes import Example, sample_prompts, vision_inputs
from edgeglm.export.prove.reference import OriginalWeights, Segment
from edgeglm.export.prove.values import Values, feeds, passed_on, relative_error, two_digits
from edgeglm.export.quantize.qdq import PRODUCT
from edgeglm.export.targets.qnn.compiler import Compiled, compile_file, title
from edgeglm.export.write.disk import write_all
from edgeglm.export.write.layout import write
from edgeglm.export.write.writer import BundleWriter
from edgeglm.roles import encoder_of
from edgeglm.runtimes.engines.qnn.engine import chip_of
from edgeglm.scratch import scratch_folder

# Of the simulator's output and ONNX Runtime's of the same integers: a graph that compiles may still be wrong.
MIN_COSINE = 0.999
CONTEXT = "npu.onnx"
SIMULATOR = "HTP simulator"
PIXELS, FEATURES = "pixel_values", "features"
# Screens on which a precision is tried.
COMPARED = 2
# Products of a run on the simulator, all screens together: about a minute.
SIMULATED_PRODUCTS = 1 << 34


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


def npu_choice(opened: Opened) -> bool:
    """Return whether a module goes to the NPU as ONNX."""
    return any(choice.placement == "npu" and choice.engine == "qnn" for choice in opened.choices)


def npu_samples(opened: Opened, examples: Sequence[Example]) -> Sequence[Sample]:
    """Return what the NPU's module is calibrated with: the samples that were given, and of the demo its own.

    Raises:
        UsageError: There are none.
        UnsupportedError: The compiler is not installed.
    """
    title()
    samples = [each for each in examples if isinstance(each, Sample)]
    if samples or not opened.request.is_demo:
        if not samples:
            why = f"{opened.request.profile.name} has vision on its NPU, which takes ranges of activations"
            raise UsageError("--calibration", why, "give samples by --calibration FILE")
        return samples
    return read_screens(DATA / "calibration.jsonl")


def calibrate_npu(opened: Opened, samples: Sequence[Sample], found: Calibration | None) -> tuple[Calibration, str]:
    """Return the calibration for the NPU's module, added to `found`, and the precision with the least error.

    Where the user has named a precision it is that one, and no other is tried.

    Raises:
        UsageError: Something in the model is not finite on the samples.
        UnsupportedError, BudgetError: As `emit.qnn.compile_file`.
        AccuracyError: No precision computes on the simulator what its integers say.
    """
    prepared = prepare(opened)
    values, shown = _walk(prepared, samples)
    base = found or Calibration(examples_hash(samples), {}, {})
    calibration = replace(base, values=values, shown=shown)
    named = next(choice.precision for choice in opened.choices if choice.placement == "npu")
    compared = NPU_PRECISIONS if is_measured(opened.request.precision) else (named,)
    trials = [_try(prepared, precision, calibration) for precision in compared]
    right = [trial for trial in trials if trial.is_right]
    if not right:
        raise _wrong(min(trial.cosine or 0.0 for trial in trials), " and ".join(compared))
    best = min(right, key=lambda trial: trial.error)
    return replace(calibration, candidates={each.precision: two_digits(each.error) for each in trials}), best.precision


def with_precision(request: Request, precision: str) -> Request:
    """Return the request with the vision module's precision named."""
    asked = {name: value for name, value in parse_precisions(request.precision).items() if name != encoder_of("image")}
    said = [value if name == "*" else f"{name}={value}" for name, value in asked.items()]
    return replace(request, precision=",".join([*said, f"{encoder_of('image')}={precision}"]))


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
        for bits, found in seen.ranges().items():
            ranges.setdefault(bits, {}).update(found)
    return ranges, [({PIXELS: each[PIXELS]}, {FEATURES: each[FEATURES]}) for each in pictures[:COMPARED]]


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
    return Trial(precision, _error(done.simulated or done.onnx, calibration.shown), least_cosine(done))


def _error(got: Sequence[Arrays], shown: Sequence[tuple[Arrays, Arrays]]) -> float:
    """Return the largest relative error of the features, over as many samples as there are."""
    return max(relative_error(one[FEATURES], want[FEATURES]) for one, (_, want) in zip(got, shown, strict=False))


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


def finish_on_npu(prepared: Prepared, module: PreparedModule, writer: BundleWriter) -> tuple[manifest.Compiled, float]:
    """Compile a written module in the bundle; what is proven of it, and its error, on the simulator where that ran.

    Raises:
        UnsupportedError, BudgetError: As `emit.qnn.compile_file`.
        AccuracyError: The simulator does not compute what the integers say.
    """
    calibration = prepared.calibration
    assert calibration
    whole = prepared.probe.model.vision == prepared.model.vision
    count = simulated_count(module, calibration.shown) if whole else 0
    inputs = [given for given, _ in calibration.shown[:count]]
    chip, file = chip_of(prepared.request.profile), f"{module.choice.name}/{CONTEXT}"
    done = compile_file(writer.path(module.file), CONTEXT, chip, inputs, simulate=count > 0)
    writer.adopt(file)
    found = least_cosine(done)
    if found is not None and found < MIN_COSINE:
        raise _wrong(found, module.choice.precision)
    error = _error(done.simulated, calibration.shown) if count else calibration.candidates[module.choice.precision]
    assert done.chip
    return manifest.Compiled(
        file=file,
        by=title(),
        chip=done.chip,
        executed_on=SIMULATOR if count else None,
        cosine=None if found is None else round(found, 6),
        candidates=dict(calibration.candidates),
    ), two_digits(error)


def simulated_count(module: PreparedModule, samples: Sequence[object]) -> int:
    """Return how many samples the simulator runs in bounded time: it takes seconds for a device's milliseconds."""
    assert module.graph
    products = sum(stored.rows * stored.columns for stored in (job.stored for job in module.jobs) if stored.columns > 1)
    patches = module.graph.graph.inputs[0].shape
    assert patches
    return min(len(samples), SIMULATED_PRODUCTS // (products * int(patches.numpy()[0])))


def least_cosine(done: Compiled) -> float | None:
    """Return the least cosine of the simulator's output to ONNX Runtime's; None if nothing was simulated."""
    pairs = zip(done.simulated, done.onnx, strict=False)
    return min((cosine(got[FEATURES], want[FEATURES]) for got, want in pairs), default=None)


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the cosine of the angle between two arrays."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _wrong(found: float, precision: str) -> AccuracyError:
    why = f"the NPU's simulator computes {precision} with a cosine of {found:.4f} to ONNX Runtime's, below {MIN_COSINE}"
    return AccuracyError("vision", why, "choose a16w8, or a profile with vision on the cpu")
