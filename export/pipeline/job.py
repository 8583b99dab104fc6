"""An export from end to end: calibrate, find the precision if a drop is stated, write the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edgeglm.errors import AccuracyError, UsageError
from edgeglm.export.calibrate.calibrator import calibrate, samples_bytes
from edgeglm.export.pipeline.export import Progress as Written
from edgeglm.export.pipeline.export import Report, export
from edgeglm.export.pipeline.gate import Gate, nothing_passed
from edgeglm.export.pipeline.ladder import CONVERTED, Ladder, Means, Measure, workplace
from edgeglm.export.predict.forecast import check_budget, export_peak, module_sizes, predict
from edgeglm.export.predict.learning import check_disk, int4_widths, learning_bytes, worker_bytes
from edgeglm.export.predict.peaks import check_peak, prefix_peak
from edgeglm.export.prefix.lengths import prefix_lengths
from edgeglm.export.prepare.preparation import STATIC, open_export, prepare
from edgeglm.export.prepare.types import Calibration, Opened, Request
from edgeglm.export.prove.probes import Example
from edgeglm.export.quantize.stream import WORKERS
from edgeglm.export.requests import Progress, Show
from edgeglm.export.targets.base import calibrate_steps, check_steps
from edgeglm.export.write.converted import Converted
from edgeglm.export.write.reuse import Reuse
from edgeglm.manifest import Metric, Rung
from edgeglm.scratch import scratch_folder


class NothingPassed(AccuracyError):
    """No precision of the ladder passes.

    Args:
        rungs: What was tried.
    """

    def __init__(self, error: AccuracyError, rungs: Sequence[Rung]) -> None:
        super().__init__(error.what, error.why, error.remedy)
        self.rungs = tuple(rungs)


@dataclass(frozen=True)
class Job:
    """An export that is ready to run.

    Args:
        request: The checkpoint, the device and the precision.
        folder: Of the bundle.
        samples: To calibrate with.
        held_out: What the bundle's self-test is made of.
        gate: Measures bundles, if a drop is stated.
        budget: Bytes of memory.
        climber: Makes what finds the precision that passes: a ladder, or a search.
    """

    request: Request
    folder: Path
    samples: Sequence[Example]
    held_out: Sequence[Example]
    gate: Gate | None
    budget: int
    climber: Callable[[Request, Means], Ladder] = Ladder

    def expected(self) -> int:
        """Return the predicted peak. Raises an error where the job can be seen to fail, as above the budget."""
        opened = open_export(self.request)
        for step in check_steps(opened.choices):
            step.check(opened, self.samples)
        if not self.samples and any(STATIC in choice.precisions for choice in opened.choices):
            why = f"{STATIC} takes ranges of activations"
            raise UsageError(f"--precision {self.request.precision}", why, "give samples by --calibration FILE")
        return max(self.peak(opened), self._check_prefixes(opened))

    def run(self, show: Show, *, resume: bool) -> tuple[Sequence[str], Sequence[Rung]]:
        """Write the bundle; returns notes for the user, and the precisions that were tried.

        Raises:
            NothingPassed: No precision passes the gate.
        """

        def report(written: Written) -> None:
            show(Progress(written.module, written.done / max(written.total, 1), written.total))

        show(Progress(f"tracing {self.request.name} for {self.request.profile.name}"))
        with ExitStack() as leave:
            request, found = self.calibrated(show, leave)
            ladder = None
            if self.gate:
                means = self.means(leave.enter_context(workplace(self.folder)), found, show, report, leave)
                ladder = self._climb(request, means)
            prepared = ladder.prepared() if ladder else prepare(open_export(request), found)
            _, notes = export(
                prepared,
                self.folder,
                predict(prepared),
                report,
                resume=resume,
                reuse=ladder.reuse if ladder else None,
                measured=ladder.measured if ladder else None,
                held_out=self.held_out,
            )
        told = prepared.calibration.notes if prepared.calibration else ()
        return [*prepared.notes, *told, *notes], ladder.rungs if ladder else []

    def means(
        self,
        work: Path,
        found: Calibration | None,
        show: Show,
        report: Report,
        leave: ExitStack,
        reuse: Reuse | None = None,
    ) -> Means:
        """Return the inputs of a climb.

        Args:
            work: A folder for bundles that are tried.
            found: What weights are encoded by, if anything.
            show: Told of each measurement and rung.
            report: Told of the progress of an export.
            leave: Removes the files of further calibrations.
            reuse: What earlier climbs have stored, if anything.
        """
        assert self.gate
        return Means(
            work=work,
            samples=self.gate.samples,
            calibration=found,
            measure=_measured(self.gate, show),
            check=self._check,
            report=report,
            show=lambda rung: show(Progress("tried", rung=rung)),
            calibrate=lambda request: replace(self, request=request).calibrated(show, leave),
            reuse=reuse or Reuse(Converted(work / CONVERTED)),
        )

    def peak(self, opened: Opened) -> int:
        """Return the predicted peak of an export and of its measurement. Raises BudgetError above the budget."""
        gate = self.gate.check_budget(opened) if self.gate else 0
        return max(self._check(opened), gate)

    def _check(self, opened: Opened) -> int:
        learning = self._learning(opened, self._widest(opened), self._worker(opened))
        return check_budget(opened, self.budget, self._fed(opened) + learning)

    def _check_prefixes(self, opened: Opened) -> int:
        """Return the predicted peak while prefixes are computed; which takes the blocks' traces."""
        if not (lengths := prefix_lengths(opened)):
            return 0
        prepared = prepare(opened)
        peak = prefix_peak(module_sizes(prepared), prepared.model.decoder, lengths)
        check_peak(peak, self.budget, "to compute --prefix", "; or leave it out")
        return peak

    def _fed(self, opened: Opened) -> int:
        return samples_bytes(opened, self.samples or (self.gate.samples if self.gate else []))

    def _learning(self, opened: Opened, widest: int, worker: int = 0) -> int:
        return learning_bytes(opened, widest, worker) if self.samples else 0

    def _widest(self, opened: Opened) -> int:
        """Return up to how many input channels the budget has room for the covariance of a matrix's inputs."""
        room = self._room(opened)
        return next((width for width in int4_widths(opened) if self._learning(opened, width) <= room), 0)

    def _worker(self, opened: Opened) -> int:
        """Return the bytes of the worker that multiplies in bf16; zero without one, or without room for it.

        Covariances come first: they make a bundle better, it makes one sooner.
        """
        worker = worker_bytes(opened) if self.samples else 0
        return worker if self._learning(opened, self._widest(opened), worker) <= self._room(opened) else 0

    def _room(self, opened: Opened) -> int:
        return self.budget - self._fed(opened) - export_peak(opened, workers=WORKERS, traced=not opened.is_traced)

    def calibrated(self, show: Show, leave: ExitStack) -> tuple[Request, Calibration | None]:
        """Return what the samples leave, and the request with the precision that an NPU's module then has.

        Args:
            show: Told of the stages.
            leave: Removes the files of a calibration.
        """
        request, opened, found = self.request, open_export(self.request), None
        if self.samples:
            traced = prepare(opened)
            work, widest = leave.enter_context(scratch_folder("calibration")), self._widest(opened)
            check_disk(traced, widest, work)
            show(Progress("calibrating"))
            found = calibrate(traced, self.samples, work, widest, in_bf16=self._worker(opened) > 0)
        for step in calibrate_steps(opened.choices):
            show(Progress("calibrating for the NPU"))
            request, found = step.calibrate(opened, self.samples, found)
        return request, found

    def _climb(self, request: Request, means: Means) -> Ladder:
        ladder = self.climber(request, means)
        ladder.climb()
        if not ladder.best:
            raise NothingPassed(nothing_passed(self.folder, ladder), ladder.rungs)
        return ladder


def _measured(gate: Gate, show: Show) -> Measure:
    def measure(bundle: Path) -> tuple[Metric, ...]:
        show(Progress("measuring"))
        return gate.metrics(bundle)

    return measure
