"""``edgeglm search``: the best bundle that passes, found by a study of its precisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

import click

from edgeglm.cli.budget import cluster_option, max_ram_option, parse_budget
from edgeglm.cli.checkpoint_options import calibration_option, image_sizes, model_options
from edgeglm.cli.export import print_result, run_export
from edgeglm.cli.output import json_option
from edgeglm.cli.via import ViaCommand, python_option
from edgeglm.engines import USUAL_FORMAT
from edgeglm.errors import UsageError
from edgeglm.export.api import SearchRequest, search
from edgeglm.export.choose.formats import FORMATS
from edgeglm.export.model import KvType
from edgeglm.export.requests import Switch
from edgeglm.suggest import nearest_name
from edgeglm.units import parse_percent

T = TypeVar("T", bound=str)


@click.command("search", cls=ViaCommand)
@model_options
@click.option("--accuracy-drop", required=True, metavar="PCT", help="Maximum accuracy drop of the bundle.")
@click.option(
    "--for",
    "goal",
    type=click.Choice(["size", "latency", "memory"]),
    default="size",
    show_default=True,
    help="What is to be least: of the bundle, of an answer or of a run.",
)
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Bundles measured at most."
)
@calibration_option
@click.option(
    "--equalization",
    default="on",
    show_default=True,
    metavar="LIST",
    help="on, off, or both as on,off: whether a calibration moves scales between weights.",
)
@click.option(
    "--study",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file that a search is kept in and goes on from (default: DIR.study).",
)
@click.option(
    "--formats",
    default=USUAL_FORMAT,
    show_default=True,
    metavar="LIST",
    help="onnx, tflite, or both as onnx,tflite: the formats that a module may have.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="CHECKPOINT",
    help="A checkpoint that edgeglm compress made of MODEL, to choose from too; once for each.",
)
@click.option(
    "--prune",
    multiple=True,
    metavar="RATE",
    help="A rate of edgeglm compress: what it makes of MODEL is chosen from too; once for each.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Measure on the first N samples, or windows of text, alone: sooner, and less sure.",
)
@click.option("--via", metavar="BACKEND", help="The board to measure on: ssh HOST, or adb (default: this machine).")
@python_option
@cluster_option
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="The bundle's folder.")
@max_ram_option
@json_option
def command(
    model: str | None,
    target: str,
    context: int | None,
    image_size: tuple[str, ...],
    prefixes: tuple[Path, ...],
    kv: KvType,
    adapter: str | None,
    accuracy_drop: str,
    goal: Literal["size", "latency", "memory"],
    trials: int,
    calibration: Path | None,
    equalization: str,
    formats: str,
    also: tuple[str, ...],
    prune: tuple[str, ...],
    study: Path | None,
    limit: int | None,
    via: str | None,
    python: str,
    cluster: str | None,
    out: Path | None,
    max_ram: str | None,
    as_json: bool,
) -> None:
    """Search for the best bundle whose accuracy drop is within a limit.

    MODEL is a Hugging Face checkpoint directory, or org/name of one on the hub; without it, the demo.
    """
    ways = _choices("--equalization", equalization, cast(tuple[Switch, ...], get_args(Switch)))
    request = SearchRequest(
        model=model,
        target=target,
        context=context,
        image_sizes=image_sizes(image_size),
        prefixes=prefixes,
        kv=kv,
        adapter=adapter,
        output=out,
        max_ram=parse_budget(max_ram),
        accuracy_drop=parse_percent(accuracy_drop, "--accuracy-drop"),
        calibration=calibration,
        equalization=ways[0],
        equalizations=ways,
        formats=_choices("--formats", formats, FORMATS),
        also=also,
        prune=prune,
        goal=goal,
        trials=trials,
        study=study,
        limit=limit,
        via=via,
        python=python,
        cluster=cluster,
    )
    print_result(run_export(request, search, as_json=as_json), as_json=as_json)


def _choices(option: str, text: str, known: Sequence[T]) -> tuple[T, ...]:
    """Return the values of a list, in their own order. Raises UsageError for what is none."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {text}", f"{name!r} is none of {', '.join(known)}", nearest_name(name, known))
    return tuple(name for name in known if name in names)
