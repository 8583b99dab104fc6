"""``edgeglm validate``: whether a bundle does its task as well as the original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from edgeglm.bundle import read_manifest
from edgeglm.cli.budget import max_ram_option, parse_budget
from edgeglm.cli.output import json_option, print_json
from edgeglm.cli.progress import Display
from edgeglm.export.api import Metric, ValidateRequest, ValidateResult, validate
from edgeglm.runtimes.inputs.masks import parse_mask
from edgeglm.units import parse_percent

HEADINGS = ("METRIC", "SAMPLES", "REFERENCE", "ARTIFACT", "DROP", "95% OF IT", "LIMIT", "VERDICT")


@click.command("validate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--accuracy-drop", default="2%", show_default=True, metavar="PCT", help="Maximum accuracy drop.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Samples (.jsonl) or a text (default: the demo's held-out screenshots, for the demo).",
)
@click.option("--reference", metavar="MODEL", help="The original (default: the demo, for the demo).")
@click.option("--adapter", metavar="DIR", help="The adapter that the bundle was exported with.")
@click.option("--mask", "masks", multiple=True, metavar="X,Y,W,H", help="Blank a region of the bundle's screens.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N samples, or windows of text.")
@max_ram_option
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as an HTML page.")
@json_option
def command(
    bundle: Path,
    accuracy_drop: str,
    data: Path | None,
    reference: str | None,
    adapter: str | None,
    masks: tuple[str, ...],
    limit: int | None,
    max_ram: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Compare a bundle with the original on its task; fail if accuracy drops too far."""
    budget = parse_budget(max_ram)
    request = ValidateRequest(
        bundle=bundle,
        accuracy_drop=parse_percent(accuracy_drop, "--accuracy-drop"),
        data=data,
        reference=reference,
        adapter=adapter,
        limit=limit,
        max_ram=budget,
        report=report,
        masks=tuple(map(parse_mask, masks)),
    )
    with Display(budget) as display:
        result = validate(request, display)
    if as_json:
        print_json(_summary(result))
    else:
        click.echo("\n".join(_lines(result)))
    result.check()


def _summary(result: ValidateResult) -> dict[str, object]:
    return {
        "bundle": str(result.bundle),
        "samples": result.samples,
        "metrics": [
            {
                "name": metric.name,
                "samples": metric.samples,
                "reference": metric.reference,
                "artifact": metric.artifact,
                "drop": metric.drop,
                "drop_interval": [metric.low, metric.high],
                "limit": metric.limit,
                "verdict": metric.verdict,
                "passed": metric.passed,
                "samples_needed": metric.needed,
            }
            for metric in result.metrics
        ],
        "passed": result.passed,
        "streamed": result.streamed is not None,
        "proven": result.unproven is None,
        "ran": dict(result.ran),
    }


def _lines(result: ValidateResult) -> Iterator[str]:
    rows = [HEADINGS, *map(_row, result.metrics)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    remarks = list(_remarks(result))
    yield from ["", *remarks] if remarks else []


def _remarks(result: ValidateResult) -> Iterator[str]:
    if any(module.compiled for module in read_manifest(result.bundle).modules):
        yield from (f"{name:<9}ran on {engine}" for name, engine in result.ran.items())
    if result.unproven:
        yield f"original read as edgeglm reads it: transformers' own loading was not compared, since {result.unproven}"
    if result.streamed and result.ran:
        yield f"original streamed, since {result.streamed}: the bundle drafted its answers, and it corrected them"


def _row(metric: Metric) -> tuple[str, ...]:
    interval = f"{metric.change(metric.low)} to {metric.change(metric.high)}"
    both, drop = (metric.value(metric.reference), metric.value(metric.artifact)), metric.change(metric.drop)
    return metric.name, str(metric.samples), *both, drop, interval, metric.change(metric.limit), metric.verdict
