"""``edgeglm export model.onnx``: an ONNX graph of the user's to a bundle."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from edgeglm.cli.inspect import describe_modules, module_table
from edgeglm.cli.output import print_json
from edgeglm.cli.progress import Display
from edgeglm.devices.loader import load_profile
from edgeglm.errors import UsageError, printable
from edgeglm.export.pack.writer import check_target
from edgeglm.export.pipeline.graph import GraphRequest, export_graph, open_graph
from edgeglm.memory import MemorySampler
from edgeglm.units import format_size


def export_file(
    request: GraphRequest, out: Path | None, budget: int, unusable: Mapping[str, object], *, as_json: bool
) -> None:
    """Export a graph and print what became of it; `unusable` are options that only a checkpoint takes."""
    start = time.monotonic()
    for option, value in unusable.items():
        if value is not None:
            raise UsageError(option, "is only for checkpoints", "leave it out")
    folder = out or Path(f"{request.name}-{request.profile.name}")
    check_target(folder)
    with MemorySampler() as memory, Display(memory, budget, start) as display:
        plan = open_graph(request, budget)
        manifest, fixes, notes = export_graph(plan, folder, display.say)
    for note in (*fixes, *notes):
        click.echo(printable(f"note: {note}"), err=True)
    seconds = time.monotonic() - start
    if as_json:
        print_json(
            {
                "bundle": str(folder),
                "target": request.profile.name,
                "modules": describe_modules(manifest),
                "fixes": [asdict(fix) for fix in fixes],
                "proof": manifest.proof,
                "bundle_bytes": manifest.bundle_bytes,
                "peak_rss_bytes": memory.peak_bytes,
                "predicted_peak_rss_bytes": plan.peak_bytes,
                "seconds": round(seconds, 3),
            }
        )
        return
    lines = [
        *module_table(manifest),
        "",
        *([f"proof   {manifest.proof}"] if manifest.proof else []),
        f"bundle  {folder}, {format_size(manifest.bundle_bytes)} in {seconds:.1f} s",
        f"memory  peak {format_size(memory.peak_bytes)}, predicted {format_size(plan.peak_bytes)}, "
        f"budget {format_size(budget)}",
        f"next    edgeglm inspect {folder}",
    ]
    click.echo("\n".join(lines))


def graph_request(model: str, target: str, precision: str, calibration: Path | None) -> GraphRequest:
    """Return what the options ask for. Raises UsageError for a wrong target."""
    return GraphRequest(Path(model), load_profile(target), precision, calibration)
