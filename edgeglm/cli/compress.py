"""``edgeglm compress``: from a checkpoint to a smaller one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

# Before numpy is loaded: the walk's products are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from edgeglm.cli.budget import max_ram_option, parse_budget
from edgeglm.cli.output import json_option, print_json
from edgeglm.cli.progress import Display
from edgeglm.errors import printable
from edgeglm.export.api import CompressRequest, CompressResult, compress
from edgeglm.units import format_size


@click.command("compress")
@click.argument("model", required=False)
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option(
    "--prune",
    metavar="RATE",
    help="Share of the blocks' parameters to remove, such as 40%, or mlp=50%,heads=50%,layers=1.",
)
@click.option(
    "--sparse",
    metavar="PATTERN",
    help="Weights of the blocks to set to zero: 2:4, two of four neighbours, or a share such as 50%.",
)
@click.option(
    "--by",
    type=click.Choice(["activations", "l1"]),
    default="activations",
    show_default=True,
    help="What the importance of a channel, head or layer is measured by.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Samples (.jsonl) or a text to measure activations on (default: the demo's, for the demo).",
)
@click.option(
    "--distill",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Samples (.jsonl) or a text that what is left learns on, from the original.",
)
@click.option("--epochs", type=int, metavar="N", help="How often --distill sees every sample (default: 3).")
@click.option("--learning-rate", type=float, metavar="RATE", help="The highest of --distill (default: 1e-4).")
@click.option("--freeze", default="", metavar="MODULES", help="Modules that do not learn, such as vision,embedding.")
@click.option("--no-resume", is_flag=True, help="Discard a partial recovery instead of resuming it.")
@click.option("--distributed", is_flag=True, help="Recover with the processes that torchrun has started.")
@max_ram_option
@json_option
def command(
    model: str | None,
    out: Path,
    prune: str | None,
    sparse: str | None,
    by: str,
    calibration: Path | None,
    distill: Path | None,
    epochs: int | None,
    learning_rate: float | None,
    freeze: str,
    no_resume: bool,
    distributed: bool,
    max_ram: str | None,
    as_json: bool,
) -> None:
    """Make a smaller checkpoint: fewer channels, heads and layers, or weights that are zero.

    MODEL is a Hugging Face checkpoint directory, or org/name of one on the hub; without it, the demo.
    """
    budget = parse_budget(max_ram)
    request = CompressRequest(
        model=model,
        output=out,
        prune=prune,
        sparse=sparse,
        by=by,
        calibration=calibration,
        max_ram=budget,
        distill=distill,
        epochs=epochs,
        learning_rate=learning_rate,
        freeze=tuple(filter(None, map(str.strip, freeze.split(",")))),
        resume=not no_resume,
        distributed=distributed,
    )
    with Display(budget) as display:
        result = compress(request, display)
    if result is None:
        return
    for note in result.notes:
        click.echo(printable(f"note: {note}"), err=True)
    if as_json:
        print_json(_summary(result))
    else:
        click.echo("\n".join(_lines(result)))


def _summary(result: CompressResult) -> dict[str, object]:
    return {
        "checkpoint": str(result.folder),
        "parts": {
            module: {kind: {"before": before, "after": after} for kind, (before, after) in counts.items()}
            for module, counts in result.parts.items()
        },
        "parameters": {"before": result.parameters[0], "after": result.parameters[1]},
        "bytes": {"before": result.bytes[0], "after": result.bytes[1]},
        "recovery": list(result.recovery),
        "peak_rss_bytes": result.peak_rss_bytes,
        "seconds": round(result.seconds, 3),
    }


def _lines(result: CompressResult) -> Iterator[str]:
    for module, counts in result.parts.items():
        said = ", ".join(f"{after} of {before} {kind}" for kind, (before, after) in counts.items())
        yield f"{module:<11}{said}"
    before, after = result.parameters
    yield f"parameters {after:,} of {before:,}, {format_size(result.bytes[1])} of {format_size(result.bytes[0])}"
    if result.recovery:
        first, *others = (f"{score:.3f}" for score in result.recovery)
        yield f"recovery   held-out score {first} before, {', '.join(others)} after each epoch; the best is kept"
    peak, budget = format_size(result.peak_rss_bytes), format_size(result.max_ram)
    yield f"memory     peak {peak}, budget {budget}, {result.seconds:.1f} s"
    yield f"next       edgeglm export {result.folder} --target NAME"
