"""The error of what was emitted, against the user's own file on samples that it was not calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgeglm import manifest
from edgeglm.engines import ENGINES
from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export.evaluate.fp16_sessions import round_results
from edgeglm.export.foreign.measure.clamps import reach_of
from edgeglm.export.foreign.measure.difference import Comparison, Difference, worst_of
from edgeglm.export.foreign.measure.places import places_of
from edgeglm.export.foreign.plan.graph_plan import Plan, computes_floats
from edgeglm.export.prove.onnx_run import Run, opened
from edgeglm.export.prove.values import two_digits
from edgeglm.strict_json import fitted

# At or above the first an export fails, unless the user gives another limit; above the second it warns.
MAX_ERROR, NOTED_ERROR = 0.5, 0.1
# Of the samples, every so manieth is kept for the error, where there are as many.
EVERY = 4


@dataclass(frozen=True)
class Accuracy:
    """The error of each output over so many samples; `unseen` where none of those calibrated it."""

    differences: tuple[Difference, ...]
    samples: int
    unseen: bool

    @property
    def worst(self) -> Difference | None:
        """The output with the largest error, None where nothing was compared."""
        return worst_of(self.differences)

    @property
    def error(self) -> float | None:
        """The largest error, in two digits."""
        return None if self.worst is None else two_digits(self.worst.error or 0.0)

    def described(self) -> manifest.GraphAccuracy:
        """Return it as the manifest has it."""
        outputs = {fitted(one.output): None if one.error is None else two_digits(one.error) for one in self.differences}
        return manifest.GraphAccuracy(self.samples, self.unseen, outputs)

    def notes(self, blamed: Sequence[str]) -> list[str]:
        """Return what the user should know of it, with the nodes that are most to blame."""
        notes = []
        if not self.unseen:
            notes.append("too few samples: the error is of those that calibrated; give 4 or more to keep some")
        if self.worst is None:
            notes.append("no output has a value that could be compared: the error was not measured")
        elif (self.worst.error or 0.0) > NOTED_ERROR:
            blame = f"; most to blame: {', '.join(blamed)}" if blamed else ""
            notes.append(f"{self.worst} is {self.worst.error:.2g} away from the original's, relative to it{blame}")
        return notes


def calibrating(count: int) -> list[int]:
    """Return which of the samples INT8 is calibrated on: three of four, or all where there are fewer."""
    return [index for index in range(count) if count < EVERY or index % EVERY != EVERY - 1]


def measured(plan: Plan) -> list[int]:
    """Return which of the samples the error is of: those that nothing was calibrated on, or all."""
    count = len(plan.samples)
    kept = set(range(count)) - set(calibrating(count)) if plan.is_calibrated else set()
    return sorted(kept) or list(range(count))


def measure(plan: Plan, file: Path) -> Accuracy:
    """Return the error of the emitted graph, in the arithmetic of its engine.

    Raises:
        UnsupportedError: ONNX Runtime cannot run one of the graphs on the samples.
    """
    source, indices = plan.source.original, measured(plan)
    comparison, original = Comparison(places := places_of(source)), open_original(plan)
    try:
        emitted = open_emitted(plan, file)
        for index in indices:
            comparison.add(original(plan.samples[index]), emitted(plan.samples[index]))
        del original, emitted  # as `reach_of` opens a session too
    except UnsupportedError:
        raise
    except Exception as error:
        why = f"ONNX Runtime cannot run it in {plan.precision}: {str(error).splitlines()[0]}"
        raise UnsupportedError(plan.request.file, why, "export it in another precision") from error
    unseen = not plan.is_calibrated or len(indices) < len(plan.samples)
    differences = comparison.differences(lambda: reach_of(source, (plan.samples[at] for at in indices), places))
    return Accuracy(differences, len(indices), unseen)


def check_error(plan: Plan, accuracy: Accuracy, blamed: Sequence[str] = ()) -> None:
    """Raise AccuracyError where an output is further from the original's than it may be."""
    worst, limit = accuracy.worst, plan.request.max_error
    if worst is None or worst.error is None or not is_too_far(worst.error, limit):
        return
    why = f"its output {worst} is {worst.error:.2g} away from the original's, relative to it"
    why += f", most of it by {', '.join(blamed)}" if blamed else ""
    remedy = f"use a higher precision than {plan.precision}" if plan.precision != "fp32" else "check the graph"
    if worst.undefined and not computes_floats(plan.request.profile, plan.engine):
        why += "; it is NaN or infinite in places, and the NPU's integers have neither"
        remedy = "keep logarithms, roots and quotients where they are defined, as by Max, or choose another --target"
    raise AccuracyError(plan.request.file, why, remedy)


def is_too_far(error: float, limit: float | None) -> bool:
    """Tell whether an error fails: at half of the output's size, or above what the user allows."""
    return error >= MAX_ERROR if limit is None else error > limit


def open_emitted(plan: Plan, file: Path) -> Run:
    """Return what runs the emitted graph: with a rounding to fp16 behind every operator, where its engine has that."""
    if plan.precision != "fp16" or not ENGINES[plan.engine].half:
        return opened(file)
    rounded = round_results(onnx.load(file, load_external_data=False)).SerializeToString()
    return opened(file, rounded, layouts=False)


def open_original(plan: Plan) -> Run:
    """Return what runs the user's graph.

    Raises:
        UnsupportedError: ONNX Runtime does not load it, or, of what is returned, does not run it on a sample.
    """
    file = plan.request.file  # which messages name

    def run(sample: object) -> dict[str, object]:
        try:
            return session(sample)  # type: ignore[arg-type]
        except Exception as error:
            raise _refused(file, error) from error

    try:
        session = opened(plan.source.original)
    except Exception as error:
        why = f"ONNX Runtime does not load it: {str(error).splitlines()[0]}"
        raise UnsupportedError(file, why, "mend the graph where that says, and export it again") from error
    return run


def _refused(file: Path, error: Exception) -> UnsupportedError:
    why = f"ONNX Runtime cannot run it on the samples: {str(error).splitlines()[0]}"
    return UnsupportedError(file, why, "give samples that it takes by --calibration")
