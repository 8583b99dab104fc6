"""``edgeglm run``: hands its arguments to the runner's own program, which a bundle carries too."""

from __future__ import annotations

import click

from edgeglm.exits import installed
from edgeglm.runtimes.program import run


@click.command(
    "run", add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Answer a prompt from a bundle, and report time and memory."""
    if ctx.obj and "--debug" in arguments:  # which stands before the command too
        ctx.obj.debug = True
    with installed("run", "edgeglm"):  # an engine is imported when a module for it is opened
        run(arguments)
