"""``--via ssh HOST``: an option with one word or two, of the commands that reach a device."""

from __future__ import annotations

import click

python_option = click.option(
    "--python", default="python3", show_default=True, metavar="COMMAND", help="Python on the device."
)


class ViaCommand(click.Command):
    """A command with ``--via``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the host to its option."""
        for index in range(len(args) - 1):
            if args[index : index + 2] == ["--via", "ssh"] or args[index] == "--via=ssh":
                start = index + (1 if "=" in args[index] else 2)
                host = [word for word in args[start : start + 1] if not word.startswith("-")]  # else the next option
                args = [*args[:index], "--via", " ".join(["ssh", *host]), *args[start + len(host) :]]
                break
        return super().parse_args(ctx, args)
