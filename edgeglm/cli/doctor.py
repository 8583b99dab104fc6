"""``edgeglm doctor``: what this machine has, and what edgeglm can use of it. No engine is imported."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click

from edgeglm.cli.output import json_option, print_json
from edgeglm.engines import ENGINES
from edgeglm.machine import Machine, describe_kernels, read_machine
from edgeglm.telemetry import telemetry_is_off
from edgeglm.units import format_size

ENGINE_MODULES = (*(library for engine in ENGINES.values() for library in engine.libraries), "torch")

# docs/decisions/0002-replaced-packages.md
TFLITE_RUNTIME_WARNING = (
    "tflite-runtime is installed: it returns wrong results on dynamic-range INT8 models without an error; "
    "uninstall it and use ai-edge-litert"
)


@dataclass(frozen=True)
class Disk:
    """The free space of the file system that holds a folder."""

    path: str
    free_bytes: int


@dataclass(frozen=True)
class Engine:
    """An engine's module; ``version`` is None when it is not importable or no distribution claims it."""

    module: str
    importable: bool
    version: str | None


@dataclass(frozen=True)
class Extra:
    """An optional group of edgeglm's dependencies, and which of them are not installed."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The report of ``edgeglm doctor``; with ``--json``, its fields are the keys.

    ``telemetry`` is whether a library that edgeglm uses would report about this machine.
    """

    edgeglm: str
    python: str
    platform: str
    machine: Machine
    disks: tuple[Disk, ...]
    engines: tuple[Engine, ...]
    extras: tuple[Extra, ...]
    telemetry: bool
    warnings: tuple[str, ...]


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Report what this machine has and what edgeglm can use of it."""
    report = examine()
    if as_json:
        print_json(asdict(report))
    else:
        click.echo("\n".join(_lines(report)))


def examine() -> Report:
    """Examine this machine and this Python environment."""
    return Report(
        edgeglm=metadata.version("edgeglm"),
        python=platform.python_version(),
        platform=platform.platform(),
        machine=read_machine(),
        disks=tuple(_disks()),
        engines=_engines(),
        extras=_extras(),
        telemetry=not telemetry_is_off(),
        warnings=(TFLITE_RUNTIME_WARNING,) if find_spec("tflite_runtime") else (),
    )


def _disks() -> Iterator[Disk]:
    """Yield the disks of the working folder, and of temporary files where they can be written."""
    places = [Path.cwd()]
    with suppress(FileNotFoundError):
        places.append(Path(tempfile.gettempdir()))
    yield from (Disk(str(path), shutil.disk_usage(path).free) for path in places)


def _engines() -> tuple[Engine, ...]:
    # By module and not by distribution, since several carry the same one (onnxruntime, onnxruntime-gpu).
    distributions = metadata.packages_distributions()
    return tuple(_engine(module, distributions.get(module, [])) for module in ENGINE_MODULES)


def _engine(module: str, distributions: list[str]) -> Engine:
    importable = find_spec(module) is not None
    version = metadata.version(distributions[0]) if importable and distributions else None
    return Engine(module, importable, version)


def _extras() -> tuple[Extra, ...]:
    names = metadata.metadata("edgeglm").get_all("Provides-Extra") or []
    requirements = metadata.requires("edgeglm") or []
    return tuple(Extra(name, tuple(_missing(name, requirements))) for name in names)


def _missing(extra: str, requirements: list[str]) -> Iterator[str]:
    """Yield what an extra lacks here, from requirements of the form ``onnx>=1; extra == "export"``."""
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        marker = re.search(r"extra == [\"']([^\"']+)", requirement)
        if name and marker and marker[1] == extra and not _installed(name[0]):
            yield name[0]


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _lines(report: Report) -> Iterator[str]:
    machine = report.machine
    yield f"edgeglm   {report.edgeglm}, Python {report.python}"
    yield f"platform  {report.platform}"
    yield f"cpu       {machine.cpu_model}, {machine.cores} cores, {machine.architecture}"
    yield f"          {' '.join(machine.cpu_features) or 'no feature that speeds up quantized kernels'}"
    yield f"int8      {describe_kernels(machine.int8_kernels)}"
    yield (
        f"memory    {format_size(machine.memory_available_bytes)} available"
        f" of {format_size(machine.memory_total_bytes)}"
    )
    for disk in report.disks:
        yield f"disk      {format_size(disk.free_bytes)} free in {disk.path}"
    yield "engines"
    for engine in report.engines:
        yield f"  {engine.module:<16}{_engine_state(engine)}"
    yield "extras"
    for extra in report.extras:
        yield f"  {extra.name:<16}{_extra_state(extra)}"
    yield f"telemetry {'on' if report.telemetry else 'off'}"
    for warning in report.warnings:
        yield f"warning: {warning}"


def _engine_state(engine: Engine) -> str:
    if not engine.importable:
        return "not installed"
    return engine.version or "importable, version unknown"


def _extra_state(extra: Extra) -> str:
    return f"would add {', '.join(extra.missing)}" if extra.missing else "installed"
