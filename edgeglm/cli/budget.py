"""``--max-ram`` and ``--cluster``: what all processes of a command may take together, and where they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgeglm.machine import memory_budget
from edgeglm.units import parse_size


def max_ram_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the option, whose value goes to `parse_budget`."""
    option = click.option(
        "--max-ram", metavar="SIZE", help="Memory of all processes, such as 2GiB (default: 60% of the available)."
    )
    return option(function)


cluster_option = click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Ray that shares the work: HOST:PORT of a cluster, or local for one on this machine.",
)


def parse_budget(max_ram: str | None) -> int:
    """Return a size in bytes. Raises UsageError for anything that is not one."""
    return memory_budget(parse_size(max_ram, "--max-ram") if max_ram is not None else None)
