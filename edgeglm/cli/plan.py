"""``edgeglm plan``: whether a model fits a device, and what its export takes, before anything is converted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from edgeglm.cli.checkpoint_options import checkpoint_options, image_sizes
from edgeglm.cli.output import json_option, print_json
from edgeglm.errors import printable
from edgeglm.export.api import Forecast, PlanRequest, plan
from edgeglm.export.model import KvType
from edgeglm.units import format_size


@click.command("plan")
@checkpoint_options
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
    as_json: bool,
) -> None:
    """Predict the export's memory and whether the bundle fits the device.

    MODEL is a directory with config.json and the headers of the weights, or org/name on the hub; without it, the demo.
    A graph of your own is an .onnx or a .pt2 file.
    """
    result = plan(
        PlanRequest(
            target=target,
            model=model,
            precision=precision,
            context=context,
            image_sizes=image_sizes(image_size),
            adapter=adapter,
            prefixes=prefixes,
            kv=kv,
        )
    )
    if as_json:
        print_json(_summary(result))
    else:
        click.echo("\n".join(_lines(result)))


def _summary(result: Forecast) -> dict[str, object]:
    return {
        "fits": result.fits,
        "target": result.target,
        "context": result.context,
        "export_peak_rss_bytes": result.export_peak_rss_bytes,
        "calibration_disk_bytes": result.calibration_disk_bytes,
        "bundle_bytes": result.chosen.bundle_bytes,
        "device_peak_rss_bytes": result.chosen.device_peak_rss_bytes,
        "blockers": [asdict(blocker) for blocker in result.blockers],
        "precisions": [asdict(option) for option in result.options],
        "notes": list(result.notes),
        "recommended": result.recommended,
    }


def _lines(result: Forecast) -> Iterator[str]:
    usable = format_size(result.usable_bytes)
    length = f" at {result.context} tokens" if result.context else ""  # a graph has none
    yield f"{result.model} on {result.target}: {'fits' if result.fits else 'does not fit'}{length}"
    yield f"export peak  {format_size(result.export_peak_rss_bytes)}"
    if result.calibration_disk_bytes:
        yield f"with --calibration  {format_size(result.calibration_disk_bytes)} of temporary disk"
    yield ""
    lengths = sorted(result.chosen.device_peak_rss_bytes)
    rows = [
        ("PRECISION", "BUNDLE", *(f"AT {length}" if length else "DEVICE PEAK" for length in lengths), f"FITS {usable}")
    ]
    others = (option for option in result.options if option.precision != result.chosen.precision)
    for option in (result.chosen, *others):
        peaks = (format_size(option.device_peak_rss_bytes[length]) for length in lengths)
        rows.append((option.precision, format_size(option.bundle_bytes), *peaks, "yes" if option.fits else "no"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    yield ""
    for blocker in result.blockers:
        yield f"blocker  {blocker.module}: {blocker.reason}; {blocker.remedy}"
    for note in result.notes:
        yield printable(f"note     {note}")
    yield f"recommended  {result.recommended or 'another device'}"
