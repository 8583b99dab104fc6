"""``edgeglm devices``: the device profiles in a table, or every statement of one with its source."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import click
import msgspec

from edgeglm.cli.output import json_option, print_json
from edgeglm.devices.loader import load_profile, profile_names
from edgeglm.devices.profile import Fact, Profile, statements

WIDTH = 100
HEADINGS = ("NAME", "ALSO", "ARCH", "USABLE", "ENGINES", "ACCELERATOR", "VISION", "DECODER")


@click.command("devices")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the device profiles, or show every fact of one with its source.

    NAME is a profile, an alias, or the path of a profile file of your own.
    """
    if name is None:
        profiles = [load_profile(known) for known in profile_names()]
        if as_json:
            print_json({"profiles": [_summary(profile) for profile in profiles]})
        else:
            click.echo("\n".join(_table([HEADINGS, *map(_row, profiles)])))
        return
    profile = load_profile(name)
    if as_json:
        print_json(msgspec.to_builtins(profile, enc_hook=int))
    else:
        click.echo("\n".join(_describe(profile)))


def _summary(profile: Profile) -> dict[str, object]:
    return {
        "name": profile.name,
        "title": profile.title,
        "aliases": profile.aliases,
        "architecture": profile.cpu.architecture.value,
        "memory_usable_bytes": int(profile.memory.usable.value),
        "engines": profile.engines.value,
        "accelerators": _accelerators(profile),
        "vision_precision": profile.modules.vision.precision.value,
        "decoder_precision": profile.modules.decoder.precision.value,
    }


def _accelerators(profile: Profile) -> list[str]:
    kinds = profile.accelerators.__struct_fields__
    return [kind for kind in kinds if getattr(profile.accelerators, kind) is not None]


def _row(profile: Profile) -> tuple[str, ...]:
    return (
        profile.name,
        _show(profile.aliases),
        profile.cpu.architecture.value,
        str(profile.memory.usable.value),
        _show(profile.engines.value),
        _show(_accelerators(profile)),
        profile.modules.vision.precision.value,
        profile.modules.decoder.precision.value,
    )


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _describe(profile: Profile) -> Iterator[str]:
    also = f" (also {', '.join(profile.aliases)})" if profile.aliases else ""
    yield f"{profile.name}{also}: {profile.title}"
    for key, statement in statements(profile):
        yield ""
        yield from _wrap(f"{key} = {_show(statement.value)}", "  ")
        ground = statement.source if isinstance(statement, Fact) else f"because {statement.reason}"
        yield from _wrap(ground, "      ")


def _wrap(text: str, indent: str) -> list[str]:
    # A URL stays whole, to be opened by a click.
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(value) or "-"
    return str(value)
