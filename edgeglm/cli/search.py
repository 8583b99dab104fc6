"""``edgeglm search``: the best bundle that passes, found by a study of its precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from edgeglm.cli.budget import cluster_option, max_ram_option, parse_budget
from edgeglm.cli.checkpoint_options import calibration_option, image_sizes, model_options
from edgeglm.cli.export import print_result, run_export
from edgeglm.cli.output import json_option
from edgeglm.cli.via import ViaCommand, python_option
from edgeglm.export.api import SearchRequest, search
from edgeglm.export.model import KvType
from edgeglm.units import parse_percent


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
    "--study",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file that a search is kept in and goes on from (default: DIR.study).",
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
    study: Path | None,
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
        accuracy_drop=parse_percent(accuracy_drop),
        calibration=calibration,
        goal=goal,
        trials=trials,
        study=study,
        via=via,
        python=python,
        cluster=cluster,
    )
    print_result(run_export(request, search, as_json=as_json), as_json=as_json)
