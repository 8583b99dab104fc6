"""``edgeglm verify``: whether every file of a bundle is, byte by byte, what was exported."""

from __future__ import annotations

from pathlib import Path

import click

from edgeglm.bundle import read_sealed
from edgeglm.cli.output import json_option, print_json
from edgeglm.damage import extra_files, find_damage
from edgeglm.units import format_size


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Check every file of a bundle against its hash."""
    manifest = read_sealed(bundle)
    damaged = list(find_damage(bundle, manifest, trust_memory=False))
    extra = extra_files(bundle, manifest)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "files": len(manifest.files),
                "bundle_bytes": manifest.bundle_bytes,
                "damaged": [{"file": damage.file, "why": damage.why} for damage in damaged],
                "extra": extra,
                "passed": not damaged,
            }
        )
    for name in [] if as_json else extra:
        click.echo(f"{name!r} is not part of the bundle", err=True)  # quoted, for control characters
    if damaged:
        raise damaged[0].error(bundle)
    if not as_json:
        click.echo(f"{bundle}: {len(manifest.files)} files, {format_size(manifest.bundle_bytes)}, all as exported")
