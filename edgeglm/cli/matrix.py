"""``edgeglm matrix``: what works, model by target by precision by format, as a page and as JSON."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import msgspec

from edgeglm.cli.budget import cluster_option, max_ram_option, parse_budget
from edgeglm.cli.matrix_cells import DEMO, cells_of, export_formats, items, read_environment
from edgeglm.cli.output import json_option, print_json
from edgeglm.cli.progress import Display
from edgeglm.devices.loader import profile_names
from edgeglm.digest import hash_range
from edgeglm.errors import UsageError
from edgeglm.export.cluster import check_cluster, connect
from edgeglm.export.matrix.fill import Matrix, Run
from edgeglm.export.matrix.measure import Measurement, Plan, measure_cell
from edgeglm.export.matrix.outcome import Outcome, read_outcomes, replace_file, write_outcomes
from edgeglm.export.matrix.page import page, stage_text
from edgeglm.export.matrix.programs import Programs
from edgeglm.export.matrix.schedule import run_within
from edgeglm.export.quantize.schemes import OFFERED
from edgeglm.export.requests import Progress
from edgeglm.files import opened
from edgeglm.memory import MemorySampler
from edgeglm.units import format_size

# The profile's, and what `edgeglm plan` compares it with.
PRECISIONS = ("auto", "fp32", *OFFERED)
SAMPLES = 256


@click.command("matrix")
@click.option("--models", multiple=True, metavar="LIST", help="Checkpoints (default: demo, the bundled model).")
@click.option("--targets", multiple=True, metavar="LIST", help="Device profiles (default: all that ship).")
@click.option("--precisions", multiple=True, metavar="LIST", help=f"Precisions (default: {','.join(PRECISIONS)}).")
@click.option("--formats", multiple=True, metavar="LIST", help="File formats (default: all).")
@click.option("--data", type=click.Path(path_type=Path), help="Samples (.jsonl) or a text to validate other models.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=SAMPLES, show_default=True, metavar="N", help="Samples per cell."
)
@max_ram_option
@cluster_option
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("compatibility.md"),
    show_default=True,
    help="The page; its results are kept beside it as JSON.",
)
@json_option
def command(
    models: Sequence[str],
    targets: Sequence[str],
    precisions: Sequence[str],
    formats: Sequence[str],
    data: Path | None,
    limit: int,
    max_ram: str | None,
    cluster: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Try models on targets in every precision and format, and write a table of what works.

    Items of a LIST are separated by commas. Results are kept, and tried again only if versions or inputs changed.
    """
    budget = parse_budget(max_ram)
    cells = cells_of(
        _listed("--models", models) or [DEMO],
        _listed("--targets", targets) or profile_names(),
        _listed("--precisions", precisions) or PRECISIONS,
        _listed("--formats", formats) or export_formats(),
        _measured(data, limit),
    )
    kept, environment = _beside(out), read_environment()
    known, damaged = read_outcomes(kept)
    if damaged:
        click.echo(f"edgeglm: {kept}: {damaged} of its outcomes are damaged, and left out", err=True)
    matrix = Matrix(known, cells, environment)
    check_cluster(cluster)
    write_outcomes(kept, matrix.outcomes)  # what cannot be kept is not measured
    plan, total = Plan(budget, limit, data, environment), len(matrix.waiting)
    with MemorySampler() as memory, Display(budget) as display, ExitStack() as leave:

        def say(stage: str) -> None:
            display(Progress(stage, rss_bytes=memory.rss_bytes))

        try:
            room, run = _runner(cluster, plan, leave)
            for done, outcome in enumerate(matrix.fill(Programs(), room, run, say), start=1):
                display.line(f"{done} of {total}  {_brief(outcome)}")
                write_outcomes(kept, matrix.outcomes)
        finally:
            write_outcomes(kept, matrix.outcomes)
            replace_file(out, page(matrix.outcomes).encode())
    asked = matrix.of(cells)
    if as_json:
        print_json(_summary(out, asked, memory.peak_bytes))
    else:
        click.echo("\n".join(_lines(out, asked, total, memory.peak_bytes, budget)))
    if memory.peak_bytes > budget:
        click.echo(
            f"edgeglm: memory: the peak was above the budget of {format_size(budget)}; please report it", err=True
        )


def _listed(option: str, texts: Sequence[str]) -> list[str]:
    """Return the items of an option's lists. Raises UsageError where they are given and hold none."""
    found = items(texts)
    if texts and not found:
        raise UsageError(f"{option} {' '.join(map(repr, texts))}", "names nothing", "name one, or leave the option out")
    return found


def _runner(address: str | None, plan: Plan, leave: ExitStack) -> tuple[int, Run]:
    """Return the bytes that a cell may take, and what measures cells: this machine's processes or a cluster."""
    if address is not None:
        cluster = leave.enter_context(connect(address, plan.budget))
        return min(plan.budget, cluster.bytes), partial(cluster.run, work=partial(measure_cell, plan))
    measure, workers = Measurement(plan), len(os.sched_getaffinity(0))
    stop = measure.programs.stop
    return plan.budget, partial(run_within, budget=plan.budget, workers=workers, work=measure, stop=stop)


def _beside(out: Path) -> Path:
    """Return where the outcomes are kept. Raises UsageError where nothing can be written."""
    if out.suffix == ".json" or not out.absolute().parent.is_dir():
        why = "its folder is not there" if out.suffix != ".json" else "is the name of what is kept beside the page"
        raise UsageError(out, why, "give a file in a folder that is, such as -o compatibility.md")
    return out.with_suffix(".json")


def _measured(data: Path | None, limit: int) -> bytes:
    """Return what decides an accuracy besides model and versions. Raises UsageError for a file that cannot be read."""
    digest = hashlib.sha256()
    if data:
        with opened(data, "give samples or a text") as stream:
            hash_range(digest, stream.fileno(), 0, os.fstat(stream.fileno()).st_size)
    return f"{limit} {digest.hexdigest()}".encode()


def _brief(outcome: Outcome) -> str:
    cell = f"{outcome.model}  {outcome.target}  {outcome.precision}  {outcome.format}"
    if outcome.exported.state != "done":
        return f"{cell}: {outcome.exported.state}: {outcome.exported.text}"
    return f"{cell}: exported, executed {stage_text(outcome.executed)}"


def _summary(out: Path, outcomes: Sequence[Outcome], peak: int) -> dict[str, object]:
    hidden = ("inputs", "environment", "finished")
    cells = [
        {name: value for name in outcome.__struct_fields__ if (value := getattr(outcome, name)) is not None}
        for outcome in outcomes
    ]
    shown = [{name: msgspec.to_builtins(cell[name]) for name in cell if name not in hidden} for cell in cells]
    return {"output": str(out), "cells": shown, "peak_rss_bytes": peak}


def _lines(out: Path, outcomes: Sequence[Outcome], tried: int, peak: int, budget: int) -> Iterator[str]:
    for name, field in (
        ("exported", "exported"),
        ("compiled", "compiled"),
        ("executed", "executed"),
        ("measured", "validated"),
    ):
        states = Counter(getattr(outcome, field).state for outcome in outcomes)
        yield f"{name:<9} {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}"
    yield f"cells     {len(outcomes)}, {len(outcomes) - tried} of them known"
    yield f"memory    peak {format_size(peak)}, budget {format_size(budget)}"
    yield f"page      {out}"
