"""``edgeglm export``: from a checkpoint or a graph to a bundle in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import click
import msgspec

from edgeglm.cli.budget import max_ram_option, parse_budget
from edgeglm.cli.checkpoint_options import calibration_option, checkpoint_options, image_sizes
from edgeglm.cli.gate import describe_ladder, ladder_table
from edgeglm.cli.inspect import describe_modules, module_table
from edgeglm.cli.output import json_option, print_json
from edgeglm.cli.progress import Display
from edgeglm.errors import printable
from edgeglm.export.api import ExportRequest, ExportResult, Progress, export
from edgeglm.export.model import KvType
from edgeglm.export.pipeline.gate import describe
from edgeglm.export.pipeline.job import NothingPassed
from edgeglm.export.requests import Switch
from edgeglm.manifest import GraphManifest, Rung
from edgeglm.units import format_size, parse_percent

T = TypeVar("T", bound=ExportRequest)


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
@click.option("--max-error", metavar="PCT", help="Maximum error of an ONNX graph's output (default: below 50%).")
@calibration_option
@click.option(
    "--equalization",
    type=click.Choice(get_args(Switch)),
    default="on",
    show_default=True,
    help="Whether a calibration moves scales between weights.",
)
@click.option("--no-resume", is_flag=True, help="Discard a partial bundle instead of resuming it.")
@json_option
def command(
    model: str | None,
    target: str,
    precision: str,
    context: int | None,
    image_size: tuple[str, ...],
    prefixes: tuple[Path, ...],
    kv: KvType,
    adapter: str | None,
    out: Path | None,
    format_: str,
    max_ram: str | None,
    accuracy_drop: str | None,
    max_error: str | None,
    calibration: Path | None,
    equalization: Switch,
    no_resume: bool,
    as_json: bool,
) -> None:
    """Export a checkpoint to a bundle for a device.

    MODEL is a Hugging Face checkpoint directory, or org/name of one on the hub; without it, the demo. A graph of your
    own is an .onnx or a .pt2 file.
    """
    request = ExportRequest(
        model=model,
        target=target,
        precision=precision,
        context=context,
        image_sizes=image_sizes(image_size),
        adapter=adapter,
        prefixes=prefixes,
        kv=kv,
        output=out,
        format=format_,
        max_ram=parse_budget(max_ram),
        accuracy_drop=parse_percent(accuracy_drop, "--accuracy-drop") if accuracy_drop is not None else None,
        max_error=parse_percent(max_error, "--max-error") if max_error is not None else None,
        calibration=calibration,
        equalization=equalization,
        resume=not no_resume,
    )
    print_result(run_export(request, export, as_json=as_json), as_json=as_json)


def run_export(
    request: T, function: Callable[[T, Callable[[Progress], None]], ExportResult], *, as_json: bool
) -> ExportResult:
    """Run an export or a search, and show how far it is; what was tried is printed where nothing passes."""
    try:
        with Display(request.max_ram or 0) as display:
            return function(request, partial(_show, display))
    except NothingPassed as error:
        _print_failure(error.rungs, as_json=as_json)
        raise


def print_result(result: ExportResult, *, as_json: bool) -> None:
    """Print what was written, and notes on stderr."""
    for note in (*map(str, result.fixes), *result.notes):
        click.echo(printable(f"note: {note}"), err=True)
    if as_json:
        print_json(_summary(result))
    else:
        click.echo("\n".join(_lines(result)))
    if result.peak_rss_bytes > result.max_ram:
        why = f"the peak was above the budget of {format_size(result.max_ram)}"
        click.echo(f"edgeglm: memory: {why}; please report it", err=True)


def _show(display: Display, progress: Progress) -> None:
    if progress.rung:
        rung = progress.rung
        display.line(f"{'passes' if rung.passed else 'fails'}: {describe(rung)}")
    else:
        display(progress)


def _print_failure(rungs: Sequence[Rung], *, as_json: bool) -> None:
    """Print the rungs that were tried, none of which passed."""
    if as_json:
        print_json({"bundle": None, "ladder": describe_ladder(rungs)})
    else:
        click.echo("\n".join(ladder_table(rungs)))


def _summary(result: ExportResult) -> dict[str, object]:
    manifest = result.manifest
    of_graph = (
        {
            "fixes": [asdict(fix) for fix in result.fixes],
            "proof": manifest.proof,
            "accuracy": msgspec.to_builtins(manifest.accuracy),
        }
        if isinstance(manifest, GraphManifest)
        else {}
    )
    return {
        "bundle": str(result.bundle),
        "target": manifest.profile.name,
        "modules": describe_modules(manifest),
        **of_graph,
        "bundle_bytes": manifest.bundle_bytes,
        "peak_rss_bytes": result.peak_rss_bytes,
        "predicted_peak_rss_bytes": result.predicted_peak_rss_bytes,
        "seconds": round(result.seconds, 3),
        **({"ladder": describe_ladder(result.rungs)} if result.rungs else {}),
    }


def _lines(result: ExportResult) -> Iterator[str]:
    manifest, rows = result.manifest, list(ladder_table(result.rungs)) if result.rungs else []
    yield from [*rows, ""] if rows else []
    yield from [*module_table(manifest), ""]
    if isinstance(manifest, GraphManifest) and manifest.proof:
        yield f"proof   {manifest.proof}"
    size, peak, predicted, budget = map(
        format_size,
        (manifest.bundle_bytes, result.peak_rss_bytes, result.predicted_peak_rss_bytes, result.max_ram),
    )
    yield f"bundle  {result.bundle}, {size} in {result.seconds:.1f} s"
    yield f"memory  peak {peak}, predicted {predicted}, budget {budget}"
    yield f"next    edgeglm inspect {result.bundle}"
