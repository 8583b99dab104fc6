"""``edgeglm export``: from a checkpoint to a bundle in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import click

from edgeglm.cli.budget import max_ram_option, parse_budget
from edgeglm.cli.checkpoint_options import checkpoint_options, to_request
from edgeglm.cli.gate import Gate, brief, describe_ladder, ladder_table, nothing_passed, open_gate
from edgeglm.cli.graph import export_file, graph_request
from edgeglm.cli.inspect import describe_modules, module_table
from edgeglm.cli.output import json_option, print_json
from edgeglm.cli.progress import Display
from edgeglm.errors import UsageError, printable
from edgeglm.export.pack.writer import check_target
from edgeglm.export.pipeline.calibrate import calibrate, read_calibration, samples_bytes
from edgeglm.export.pipeline.export import Progress, Report, export
from edgeglm.export.pipeline.forecast import check_budget, predict
from edgeglm.export.pipeline.graph import is_graph
from edgeglm.export.pipeline.ladder import Ladder, Means, workplace
from edgeglm.export.pipeline.npu import calibrate_npu, npu_choice, npu_samples, with_precision
from edgeglm.export.pipeline.prepare import STATIC, open_export, prepare
from edgeglm.export.pipeline.prepared import Calibration, Opened, Request
from edgeglm.export.pipeline.probes import Example
from edgeglm.export.pipeline.tflite_sizes import check_npu
from edgeglm.manifest import Manifest, Metric, Rung
from edgeglm.memory import MemorySampler
from edgeglm.units import format_size


@click.command("export")
@checkpoint_options
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="The bundle's folder.")
@click.option(
    "--format",
    "format_",
    default="onnx",
    metavar="LIST",
    help="onnx or tflite, or by module: vision=tflite (default: onnx).",
)
@max_ram_option
@click.option("--accuracy-drop", metavar="PCT", help="Maximum accuracy drop; raises precision until the bundle passes.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Samples (.jsonl) or a text to calibrate with (default: the demo's, for the demo).",
)
@click.option("--no-resume", is_flag=True, help="Discard a partial bundle instead of resuming it.")
@json_option
def command(
    model: str | None,
    target: str,
    precision: str,
    context: int | None,
    image_size: tuple[str, ...],
    adapter: str | None,
    out: Path | None,
    format_: str,
    max_ram: str | None,
    accuracy_drop: str | None,
    calibration: Path | None,
    no_resume: bool,
    as_json: bool,
) -> None:
    """Export a checkpoint to a bundle for a device.

    MODEL is a Hugging Face checkpoint directory, or org/name of one on the hub; without it, the demo. A graph of your
    own is an .onnx file.
    """
    start = time.monotonic()
    budget = parse_budget(max_ram)
    if model is not None and is_graph(model):
        unusable = {
            "--context": context,
            "--image-size": image_size or None,
            "--accuracy-drop": accuracy_drop,
            "--adapter": adapter,
        }
        export_file(graph_request(model, target, precision, calibration), out, budget, unusable, as_json=as_json)
        return
    request = replace(to_request(model, target, precision, context, image_size, adapter), format=format_)
    folder = out or Path(f"{request.name.rpartition('/')[2]}-{request.profile.name}")
    check_target(folder)
    samples, held_out = read_calibration(calibration, request.folder) if calibration else ([], [])
    gate = open_gate(request, accuracy_drop, calibration, samples, budget) if accuracy_drop else None
    job = _Job(request, folder, samples, held_out, gate, budget, as_json=as_json)
    expected = job.expected()
    with MemorySampler() as memory, Display(memory, budget, start) as display:
        made = job.run(display, resume=not no_resume)
    for note in made.notes:
        click.echo(printable(f"note: {note}"), err=True)
    seconds = time.monotonic() - start
    if as_json:
        rungs = {"ladder": describe_ladder(made.rungs)} if gate else {}
        print_json(_summary(folder, made.manifest, memory.peak_bytes, expected, seconds) | rungs)
    else:
        lines = [
            *([*ladder_table(made.rungs), ""] if gate else []),
            *module_table(made.manifest),
            "",
            f"bundle  {folder}, {format_size(made.manifest.bundle_bytes)} in {seconds:.1f} s",
            f"memory  peak {format_size(memory.peak_bytes)}, predicted {format_size(expected)}, "
            f"budget {format_size(budget)}",
            f"next    edgeglm inspect {folder}",
        ]
        click.echo("\n".join(lines))
    if memory.peak_bytes > budget:
        click.echo(
            f"edgeglm: memory: the peak was above the budget of {format_size(budget)}; please report it", err=True
        )


@dataclass(frozen=True)
class _Made:
    """A bundle's manifest, what to say of it, and the rungs that led to it."""

    manifest: Manifest
    notes: Sequence[str]
    rungs: Sequence[Rung]


@dataclass(frozen=True)
class _Job:
    """An export: calibrate, climb the ladder if there is a gate, write the bundle."""

    request: Request
    folder: Path
    samples: Sequence[Example]
    held_out: Sequence[Example]
    gate: Gate | None
    budget: int
    as_json: bool

    def expected(self) -> int:
        """Return the predicted peak. Raises an error where the job can be seen to fail, as above the budget."""
        opened = open_export(self.request)
        check_npu(opened, self.samples)
        if not self.samples and any(STATIC in choice.precisions for choice in opened.choices):
            why = f"{STATIC} takes ranges of activations"
            raise UsageError(f"--precision {self.request.precision}", why, "give samples by --calibration FILE")
        return max(self._check(opened), self.gate.check_budget(opened) if self.gate else 0)

    def run(self, display: Display, *, resume: bool) -> _Made:
        """Write the bundle. Raises AccuracyError where no precision passes the gate."""

        def report(progress: Progress) -> None:
            display.progress(progress.module, progress.done, progress.total)

        display.say(f"tracing {self.request.name} for {self.request.profile.name}")
        request, found = self._calibrated(display)
        with ExitStack() as leave:
            ladder = None
            if self.gate:
                work = leave.enter_context(workplace(self.folder))
                ladder = self._climb(self.gate, request, found, work, display, report)
                request = replace(request, precision=ladder.precision)
            prepared = prepare(open_export(request), found)
            manifest, notes = export(
                prepared,
                self.folder,
                predict(prepared),
                report,
                resume=resume,
                reuse=ladder.reuse if ladder else None,
                measured=ladder.measured if ladder else None,
                held_out=self.held_out,
            )
        return _Made(manifest, [*prepared.notes, *notes], ladder.rungs if ladder else [])

    def _check(self, opened: Opened) -> int:
        fed = self.samples or (self.gate.samples if self.gate else [])
        return check_budget(opened, self.budget, samples_bytes(opened, fed))

    def _calibrated(self, display: Display) -> tuple[Request, Calibration | None]:
        """Return what the samples leave, and the request with the precision that an NPU's module then has."""
        request, opened, found = self.request, open_export(self.request), None
        if self.samples:
            traced = prepare(opened)
            display.say("calibrating")
            found = calibrate(traced, self.samples)
        if npu_choice(opened):
            display.say("calibrating for the NPU")
            found, precision = calibrate_npu(opened, npu_samples(opened, self.samples), found)
            request = with_precision(request, precision)
        return request, found

    def _climb(
        self,
        gate: Gate,
        request: Request,
        calibration: Calibration | None,
        work: Path,
        display: Display,
        report: Report,
    ) -> Ladder:
        def measure(bundle: Path) -> tuple[Metric, ...]:
            display.say("measuring")
            return gate.validation.metrics(bundle)

        def show(rung: Rung) -> None:
            display.line(f"{'passes' if rung.passed else 'fails'}: {brief(rung.precision)}")

        ladder = Ladder(request, Means(work, gate.samples, calibration, measure, self._check, report, show))
        ladder.climb()
        if not ladder.best:
            _print_failure(ladder, as_json=self.as_json)
            raise nothing_passed(self.folder, ladder)
        return ladder


def _print_failure(ladder: Ladder, *, as_json: bool) -> None:
    """Print the rungs that were tried, none of which passed."""
    if as_json:
        print_json({"bundle": None, "ladder": describe_ladder(ladder.rungs)})
    else:
        click.echo("\n".join(ladder_table(ladder.rungs)))


def _summary(folder: Path, manifest: Manifest, peak: int, predicted: int, seconds: float) -> dict[str, object]:
    return {
        "bundle": str(folder),
        "target": manifest.profile.name,
        "modules": describe_modules(manifest),
        "bundle_bytes": manifest.bundle_bytes,
        "peak_rss_bytes": peak,
        "predicted_peak_rss_bytes": predicted,
        "seconds": round(seconds, 3),
    }
