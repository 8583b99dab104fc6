"""``edgeglm serve``: hands its arguments to the server's own program, which a bundle carries too."""

from __future__ import annotations

import click

from edgeglm.exits import installed
from edgeglm.runtimes.serve.program import serve


@click.command(
    "serve", add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Serve bundles to OpenAI-compatible clients."""
    if ctx.obj and "--debug" in arguments:  # which stands before the command too
        ctx.obj.debug = True
    with installed("serve", "edgeglm"):
        serve(arguments)
