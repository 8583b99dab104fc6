"""``edgeglm export``: from a checkpoint to a bundle in bounded memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

import click

from edgeglm.cli.checkpoint_options import checkpoint_options, to_request
from edgeglm.cli.inspect import describe_modules, module_table
from edgeglm.cli.output import json_option, print_json
from edgeglm.export.pack.writer import check_target
from edgeglm.export.pipeline.export import Progress, export
from edgeglm.export.pipeline.forecast import check_budget, predict
from edgeglm.export.pipeline.prepare import open_export, prepare
from edgeglm.machine import read_machine
from edgeglm.manifest import Manifest
from edgeglm.memory import MemorySampler
from edgeglm.units import format_size, parse_size

SHARE = 0.6  # of the memory that is available, where no budget is given


@click.command("export")
@checkpoint_options
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="The bundle's folder.")
@click.option(
    "--max-ram", metavar="SIZE", help="Budget of all processes, such as 2GiB (default: 60% of what is available)."
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
    max_ram: str | None,
    no_resume: bool,
    as_json: bool,
) -> None:
    """Export a checkpoint to a bundle for a device.

    MODEL is a Hugging Face checkpoint directory, or org/name of one on the hub; without it, the demo.
    """
    start = time.monotonic()
    request = to_request(model, target, precision, context, image_size)
    budget = parse_size(max_ram) if max_ram else int(SHARE * read_machine().memory_available_bytes)
    folder = out or Path(f"{request.name.rpartition('/')[2]}-{request.profile.name}")
    check_target(folder)
    opened = open_export(request)
    expected = check_budget(opened, budget)
    with MemorySampler() as memory, _Display(memory, budget, start) as display:
        display.say(f"tracing {request.name} for {request.profile.name}")
        prepared = prepare(opened)

        def report(progress: Progress) -> None:
            display.progress(progress.module, progress.done, progress.total)

        manifest, notes = export(prepared, folder, predict(prepared), report, resume=not no_resume)
    for note in (*opened.notes, *notes):
        click.echo(f"note: {note}", err=True)
    seconds = time.monotonic() - start
    if as_json:
        print_json(_summary(folder, manifest, memory.peak_bytes, expected, seconds))
    else:
        lines = [
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


class _Display:
    """Progress in one line of a terminal's stderr, as a context manager that leaves the line empty."""

    def __init__(self, memory: MemorySampler, budget: int, start: float) -> None:
        self.memory, self.budget, self.start = memory, budget, start
        self.terminal = sys.stderr.isatty()
        self.module, self.since = "", start

    def say(self, text: str) -> None:
        if self.terminal:
            click.echo(f"\r\x1b[2K{text}  {self._rss()}", err=True, nl=False)

    def progress(self, module: str, done: int, total: int) -> None:
        if module != self.module:
            self.module, self.since = module, time.monotonic()
        speed = done / 1e6 / max(time.monotonic() - self.since, 1e-3)
        self.say(f"{module:<10}{done / max(total, 1):>4.0%}  {speed:.0f} MB/s")

    def __enter__(self) -> _Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            click.echo("\r\x1b[2K", err=True, nl=False)

    def _rss(self) -> str:
        return f"RSS {format_size(self.memory.rss_bytes)} of {format_size(self.budget)}"
