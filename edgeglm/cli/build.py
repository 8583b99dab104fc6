"""``edgeglm build``: TensorRT's engines of a bundle, built on the device; or for another GPU, to prove the graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import starmap
from pathlib import Path

import click

from edgeglm.cli.output import json_option, print_json
from edgeglm.manifest import Module
from edgeglm.runtimes.core.progress import progress_line
from edgeglm.runtimes.engines.tensorrt.build import build_engines
from edgeglm.runtimes.engines.tensorrt.cache import Engine
from edgeglm.units import format_size

HEADINGS = ("MODULE", "PRECISION", "SIZE", "SECONDS")


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--sm",
    type=click.IntRange(min=10),
    metavar="N",
    help="Build for this compute capability without a GPU, with tensorrt-rtx: 86 is 8.6.",
)
@json_option
def command(bundle: Path, sm: int | None, as_json: bool) -> None:
    """Build the TensorRT engines of a bundle, on the device that runs them."""
    with ExitStack() as shown:
        lines = dict[str, Callable[[float], None]]()

        def show(file: str, done: float) -> None:
            if file not in lines:
                shown.close()  # of the module before it
                lines[file] = shown.enter_context(progress_line(f"building {file}"))
            lines[file](done)

        result = build_engines(bundle, sm, show)
    made, proof = result.engines, result.proof
    if as_json:
        print_json({"bundle": str(bundle), "modules": list(starmap(_summary, made)), "proof": proof})
    else:
        folder = made[0][1].path.parents[1]
        click.echo("\n".join([*_table(made), "", f"engines  {folder}", f"proof    {proof}"]))


def _summary(module: Module, engine: Engine) -> dict[str, object]:
    record = engine.record
    return {
        "name": module.name,
        "precision": module.precision,
        "file": str(engine.path),
        "bytes": record.bytes,
        "built_by": record.built_by,
        "sm": record.sm,
        "seconds": record.seconds,
        "fresh": engine.fresh,
    }


def _table(engines: Sequence[tuple[Module, Engine]]) -> list[str]:
    rows = [HEADINGS, *starmap(_row, engines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(module: Module, engine: Engine) -> tuple[str, ...]:
    seconds = f"{engine.record.seconds:.1f}" if engine.fresh else "kept"
    return module.name, module.precision, format_size(engine.record.bytes), seconds
