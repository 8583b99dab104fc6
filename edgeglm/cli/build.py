"""``edgeglm build``: TensorRT's engines of a bundle, built on the device; or for another GPU, to prove the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.cli.output import json_option, print_json
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.manifest import Manifest, Module
from edgeglm.runtimes.cuda import Gpu
from edgeglm.runtimes.engines import Engine, engine_for
from edgeglm.runtimes.progress import progress_line
from edgeglm.runtimes.tensorrt_library import Library, load_library
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
    opened = load_bundle(bundle)
    made = [module for module in opened.manifest.modules if module.engine == "tensorrt"]
    modules = [shape for module in made for shape in module.each_shape]
    if not modules:
        why = f"was exported for {opened.manifest.profile.name}, and has no module for TensorRT"
        raise UsageError(bundle, why, "run it as it is, or export it with --target jetson")
    verify_bundle(opened)
    library, built_for = _builder(opened.manifest, sm)
    engines = []
    for module in modules:
        with progress_line(f"building {module.file}") as show:
            engines.append(engine_for(opened, module, library, built_for, show))
    proof = _proof(library, built_for, executable=sm is None)
    if as_json:
        print_json({"bundle": str(bundle), "modules": list(map(_summary, modules, engines)), "proof": proof})
    else:
        folder = engines[0].path.parents[1]
        click.echo("\n".join([*_table(modules, engines), "", f"engines  {folder}", f"proof    {proof}"]))


def _builder(manifest: Manifest, sm: int | None) -> tuple[Library, int]:
    """Return TensorRT and the compute capability to build for: the GPU's, or that of ``--sm``."""
    if sm is not None:
        return load_library(["tensorrt_rtx"]), sm
    try:
        gpu = Gpu()
    except UnsupportedError as error:
        remedy = f"run it on {manifest.profile.title}; edgeglm build --sm 86 proves the graphs without a GPU"
        raise UnsupportedError(error.what, error.why, remedy) from error
    try:
        return load_library(), gpu.sm
    finally:
        gpu.close()


def _proof(library: Library, sm: int, *, executable: bool) -> str:
    """Return what the engines' being there shows, and what it does not."""
    if executable:
        return f"built for SM{sm} by {library.title}, for this GPU: edgeglm run executes them"
    return f"built for SM{sm} by {library.title}: graph, types, shapes and profiles proven, not executed"


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


def _table(modules: Sequence[Module], engines: Sequence[Engine]) -> list[str]:
    rows = [HEADINGS, *map(_row, modules, engines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(module: Module, engine: Engine) -> tuple[str, ...]:
    seconds = f"{engine.record.seconds:.1f}" if engine.fresh else "kept"
    return module.name, module.precision, format_size(engine.record.bytes), seconds
