"""``edgeglm export``: from a checkpoint to a bundle in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from edgeglm.cli.checkpoint_options import checkpoint_options, to_request
from edgeglm.cli.gate import Gate, brief, describe_ladder, ladder_table, nothing_passed, open_gate
from edgeglm.cli.graph import export_file, graph_request
from edgeglm.cli.inspect import describe_modules, module_table
from edgeglm.cli.output import json_option, print_json
from edgeglm.cli.progress import Display
from edgeglm.errors import UsageError
from edgeglm.export.pack.writer import check_target
from edgeglm.export.pipeline.calibrate import calibrate, read_calibration, samples_bytes
from edgeglm.export.pipeline.export import Progress, Report, export
from edgeglm.export.pipeline.forecast import check_budget, predict
from edgeglm.export.pipeline.graph import is_graph
from edgeglm.export.pipeline.ladder import Ladder, Means, workplace
from edgeglm.export.pipeline.npu import calibrate_npu, npu_choice, npu_samples, with_precision
from edgeglm.export.pipeline.prepare import STATIC, open_export, prepare
from edgeglm.export.pipeline.prepared import Calibration, Opened, Request
from edgeglm.export.pipeline.tflite_sizes import check_npu
from edgeglm.machine import read_machine
from edgeglm.manifest import Manifest, Metric, Rung
from edgeglm.memory import MemorySampler
from edgeglm.units import format_size, parse_size

SHARE = 0.6  # of the memory that is available, where no budget is given


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
@click.option(
    "--max-ram", metavar="SIZE", help="Budget of all processes, such as 2GiB (default: 60% of what is available)."
)
@click.option(
    "--accuracy-drop", metavar="PCT", help="Measure, and go on to milder precisions until no metric drops by more."
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Samples (.jsonl) or a text to calibrate with; of the demo, its own.",
)
@click.option("--no-resume", is_flag=True, help="Throw a partial bundle away instead of going on from it.")
@json_option
def command(
    model: str | None,
    target: str,
    precision: str,
    context: int | None,
    image_size: str | None,
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
    budget = parse_size(max_ram) if max_ram else int(SHARE * read_machine().memory_available_bytes)
    if model is not None and is_graph(model):
        unusable = {"--context": context, "--image-size": image_size, "--accuracy-drop": accuracy_drop}
        export_file(graph_request(model, target, precision, calibration), out, budget, unusable, as_json=as_json)
        return
    request = replace(to_request(model, target, precision, context, image_size), format=format_)
    folder = out or Path(f"{request.name.rpartition('/')[2]}-{request.profile.name}")
    check_target(folder)
    samples = read_calibration(calibration, request.folder) if calibration else []
    gate = open_gate(request, accuracy_drop, calibration, samples) if accuracy_drop else None
    opened = open_export(request)
    check_npu(opened, samples)
    needed = samples_bytes(opened, samples or (gate.samples if gate else []))

    def check(opened: Opened) -> int:
        return check_budget(opened, budget, needed)

    expected = max(check(opened), gate.check_budget(opened.checkpoint, budget) if gate else 0)
    ladder = None
    with MemorySampler() as memory, Display(memory, budget, start) as display, ExitStack() as leave:
        display.say(f"tracing {request.name} for {request.profile.name}")

        def report(progress: Progress) -> None:
            display.progress(progress.module, progress.done, progress.total)

        found = None
        if not samples and any(STATIC in choice.precisions for choice in opened.choices):
            why = f"{STATIC} takes ranges of activations"
            raise UsageError(f"--precision {precision}", why, "give samples by --calibration FILE")
        if samples:
            traced = prepare(opened)
            display.say("calibrating")
            found = calibrate(traced, samples)
        if npu_choice(opened):
            display.say("calibrating for the NPU")
            found, precision = calibrate_npu(opened, npu_samples(opened, samples), found)
            request = with_precision(request, precision)
            opened = open_export(request)
        if gate:
            work = leave.enter_context(workplace(folder))
            ladder = _climb(request, gate, found, work, check, display, report)
            if not ladder.best:
                _print_failure(folder, ladder, as_json=as_json)
                raise nothing_passed(folder, ladder)
            opened = open_export(replace(request, precision=ladder.precision))
        prepared = prepare(opened, found)
        manifest, notes = export(
            prepared,
            folder,
            predict(prepared),
            report,
            resume=not no_resume,
            reuse=ladder.reuse if ladder else None,
            measured=ladder.measured if ladder else None,
        )
    for note in (*prepared.notes, *notes):
        click.echo(f"note: {note}", err=True)
    seconds = time.monotonic() - start
    if as_json:
        rungs = {"ladder": describe_ladder(ladder.rungs)} if ladder else {}
        print_json(_summary(folder, manifest, memory.peak_bytes, expected, seconds) | rungs)
    else:
        lines = [
            *([*ladder_table(ladder.rungs), ""] if ladder else []),
            *module_table(manifest),
            "",
            f"bundle  {folder}, {format_size(manifest.bundle_bytes)} in {seconds:.1f} s",
            f"memory  peak {format_size(memory.peak_bytes)}, predicted {format_size(expected)}, "
            f"budget {format_size(budget)}",
            f"next    edgeglm inspect {folder}",
        ]
        click.echo("\n".join(lines))
    if memory.peak_bytes > budget:
        click.echo(
            f"edgeglm: memory: the peak was above the budget of {format_size(budget)}; please report it", err=True
        )


def _climb(
    request: Request,
    gate: Gate,
    calibration: Calibration | None,
    work: Path,
    check: Callable[[Opened], int],
    display: Display,
    report: Report,
) -> Ladder:
    def measure(bundle: Path) -> tuple[Metric, ...]:
        display.say("measuring")
        return gate.validation.metrics(bundle)

    def show(rung: Rung) -> None:
        display.line(f"{'passes' if rung.passed else 'fails'}: {brief(rung.precision)}")

    ladder = Ladder(request, Means(work, gate.samples, calibration, measure, check, report, show))
    ladder.climb()
    return ladder


def _print_failure(folder: Path, ladder: Ladder, *, as_json: bool) -> None:
    """What was tried, where no bundle comes of it."""
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
