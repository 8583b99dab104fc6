"""Print what all commands share: with ``--json``, exactly one JSON object on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def print_json(result: Mapping[str, object]) -> None:
    """Print a command's result as the one JSON object of its stdout."""
    # Escaped to ASCII, so that any locale can carry it.
    click.echo(json.dumps(result, indent=2))
