"""``edgeglm inspect``: what a bundle's manifest says of its modules, its needs and its origin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from edgeglm.bundle import read_sealed
from edgeglm.cli.output import json_option, print_json
from edgeglm.engines import ENGINES
from edgeglm.manifest import Compiled, GraphManifest, Manifest, Module, Sealed, Shape
from edgeglm.units import format_size

HEADINGS = ("MODULE", "PRECISION", "FORMAT", "FILE", "SIZE", "ERROR")


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Show what a bundle holds, needs and was made from."""
    manifest = read_sealed(bundle)
    if as_json:
        print_json(_summary(bundle, manifest))
    else:
        click.echo("\n".join(_lines(manifest)))


def describe_modules(manifest: Sealed) -> list[dict[str, object]]:
    """Return the modules as every command's ``--json`` gives them.

    ``parts`` only of a mixed one, ``tried`` of a choice, ``compiled`` of an NPU's.
    """
    return [
        {
            "name": module.name,
            "precision": module.precision,
            **({"parts": module.parts} if module.parts else {}),
            **({"tried": module.tried} if module.tried else {}),
            "format": module.format,
            "file": module.file,
            "bytes": manifest.module_bytes(module),
            "max_relative_error": module.max_relative_error,
            **({"compiled": msgspec.to_builtins(module.compiled)} if module.compiled else {}),
            **({"shapes": [_shape(shape) for shape in module.shapes]} if module.shapes else {}),
        }
        for module in manifest.modules
    ]


def module_table(manifest: Sealed) -> list[str]:
    """Return the modules as the lines of a table, and below it what was proven of those for an NPU."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for module in manifest.modules:
        rows += [_row(manifest, module), *(_shape_row(module, shape) for shape in module.shapes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    proofs = (f"{module.name}: {_proof(module, module.compiled)}" for module in manifest.modules if module.compiled)
    return [*("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), *proofs]


def _proof(module: Module, compiled: Compiled) -> str:
    """Return what the compiler's file shows, and what it does not."""
    built = f"compiled for {compiled.chip} by {compiled.by}"
    if compiled.executed_on is None:
        return f"{built}, not executed"
    assert module.engine
    engine = ENGINES[module.engine].everywhere
    found = "whole numbers as" if compiled.cosine is None else f"cosine {compiled.cosine} to"
    return f"{built}, executed on its {compiled.executed_on}: {found} {engine.title}"


def _row(manifest: Sealed, module: Module) -> tuple[str, ...]:
    error = module.max_relative_error
    size = format_size(manifest.module_bytes(module))
    return module.name, module.precision, module.format, module.file, size, "-" if error is None else f"{error:.2g}"


def _shape(shape: Shape) -> dict[str, object]:
    return {"grid": shape.grid, "file": shape.file, "max_relative_error": shape.max_relative_error}


def _shape_row(module: Module, shape: Shape) -> tuple[str, ...]:
    """Return a further shape of picture, whose weights are the module's."""
    error = shape.max_relative_error
    return "", module.precision, module.format, shape.file, "shared", "-" if error is None else f"{error:.2g}"


def _parts(module: Module) -> Iterator[str]:
    """Yield the precisions of a mixed module, each with its parts."""
    for precision in sorted(set(module.parts.values())):
        parts = sorted((part for part, value in module.parts.items() if value == precision), key=_natural)
        yield f"{module.name}, {precision}: {', '.join(parts)}"


def _errors(module: Module) -> Iterator[str]:
    """Yield the errors of the precisions that were tried, and of products on the calibration."""
    for title, errors in (("tried", module.tried), ("products", module.products)):
        if errors:
            said = (f"{name.replace('_', ' ')} {error:.2g}" for name, error in errors.items())
            yield f"{title}: {', '.join(said)}"


def _natural(part: str) -> tuple[str, int]:
    """Return a sort key that puts layer.2 before layer.10."""
    name, _, number = part.partition(".")
    return name, int(number) if number.isdecimal() else 0


def _lines(manifest: Manifest | GraphManifest) -> Iterator[str]:
    provenance = manifest.provenance
    if isinstance(manifest, GraphManifest):
        yield f"graph   {manifest.graph.name} (ONNX, of opset {manifest.graph.opset})"
    else:
        model = manifest.model
        yield f"model   {model.name} ({model.architecture}, {model.layers} layers of {model.hidden_size})"
    yield f"target  {manifest.profile.name}: {manifest.profile.title}"
    yield f"size    {format_size(manifest.bundle_bytes)} in {len(manifest.files)} files"
    yield ""
    yield from module_table(manifest)
    for module in manifest.modules:
        yield from _parts(module)
        yield from (f"{module.name}, {line}" for line in _errors(module))
    yield ""
    if isinstance(manifest, Manifest):
        predicted = manifest.predicted
        yield "predicted peak memory"
        yield f"  {'export':<16}{format_size(predicted.export_peak_rss_bytes)}"
        for context, size in sorted(predicted.device_peak_rss_bytes.items()):
            yield f"  {f'{context} tokens':<16}{format_size(size)}"
    elif manifest.proof:
        yield f"proof   {manifest.proof}"
    yield "made from"
    yield f"  {'weights':<16}sha256 {provenance.weights_sha256}"
    yield f"  {'configuration':<16}sha256 {provenance.config_sha256}"
    yield f"  {'calibration':<16}{f'sha256 {calibration}' if (calibration := provenance.calibration_sha256) else '-'}"
    for name, value in (*sorted(provenance.versions.items()), *sorted(provenance.options.items())):
        yield f"  {name:<16}{'-' if value is None else value}"


def _summary(bundle: Path, manifest: Manifest | GraphManifest) -> dict[str, object]:
    provenance: dict[str, object] = msgspec.to_builtins(manifest.provenance)
    return {
        "bundle": str(bundle),
        "target": manifest.profile.name,
        **_of_kind(manifest),
        "modules": describe_modules(manifest),
        "bundle_bytes": manifest.bundle_bytes,
        "provenance": provenance,
    }


def _of_kind(manifest: Manifest | GraphManifest) -> dict[str, object]:
    """Return what only a language model's bundle says, or only a graph's."""
    if isinstance(manifest, GraphManifest):
        return {"graph": msgspec.to_builtins(manifest.graph), "proof": manifest.proof}
    return {
        "model": {"name": manifest.model.name, "architecture": manifest.model.architecture},
        "predicted_peak_rss_bytes": manifest.predicted.export_peak_rss_bytes,
        "device_peak_rss_bytes": dict(sorted(manifest.predicted.device_peak_rss_bytes.items())),
    }
