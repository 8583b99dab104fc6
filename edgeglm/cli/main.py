"""The ``edgeglm`` command: a group that imports a command's module only when that command runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import click
from click.shell_completion import shell_complete

from edgeglm.errors import UsageError
from edgeglm.exits import installed, run_program
from edgeglm.suggest import nearest_name

# Name and short help of each command; the module edgeglm.cli.<name>, with _ for -, holds it under the name `command`.
COMMANDS = {
    "bench": "Measure a bundle's speed and memory on this machine.",
    "build": "Build the TensorRT engines of a bundle, on the device that runs them.",
    "burn-test": "Run a bundle on a device, and compare its answers with this machine's.",
    "compress": "Make a smaller checkpoint: fewer channels, heads and layers, or weights that are zero.",
    "devices": "List the device profiles, or show every fact of one with its source.",
    "doctor": "Report what this machine has and what edgeglm can use of it.",
    "export": "Export a checkpoint to a bundle for a device.",
    "inspect": "Show what a bundle holds, needs and was made from.",
    "matrix": "Try models on targets in every precision and format, and write a table of what works.",
    "plan": "Predict the export's memory and whether the bundle fits the device.",
    "run": "Answer a prompt from a bundle, and report time and memory.",
    "search": "Search for the best bundle whose accuracy drop is within a limit.",
    "serve": "Serve bundles to OpenAI-compatible clients.",
    "validate": "Compare a bundle with the original on its task; fail if accuracy drops too far.",
    "verify": "Check every file of a bundle against its hash.",
}
# The extra that a command needs.
EXTRAS = {
    "compress": "export",
    "export": "export",
    "matrix": "export",
    "plan": "export",
    "search": "export,search",
    "serve": "serve",
    "validate": "export",
}


@dataclass
class Settings:
    """The options that stand before the command."""

    debug: bool = False


class LazyGroup(click.Group):
    """A group over ``COMMANDS`` whose help comes from the table instead of from the commands' modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return the command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        extra = EXTRAS.get(cmd_name, "")
        with installed(cmd_name, f"'edgeglm[{extra}]'" if extra else "edgeglm"):
            # Its commands import what is heavy when they use it, which would be too late to say so.
            if extra.startswith("export") and not find_spec("onnx_ir"):
                raise ModuleNotFoundError(name="onnx_ir")
            command: click.Command = importlib.import_module(module_of(cmd_name)).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve the command, with the nearest name as the remedy for an unknown one."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise UsageError(args[0], "is not a command", nearest_name(args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' short help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def module_of(name: str) -> str:
    """Return the module of a command."""
    return f"edgeglm.cli.{name.replace('-', '_')}"


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Settings).debug = value


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgeglm", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error.")
def cli() -> None:
    """Take GLM-family checkpoints to edge devices."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a failure is one line on stderr."""
    settings = Settings()
    given = sys.argv[1:] if arguments is None else arguments
    return run_program(lambda: _run(given, settings), debug=lambda: settings.debug, again="run edgeglm --debug COMMAND")


def _run(arguments: Sequence[str], settings: Settings) -> int:
    completion = os.environ.get("_EDGEGLM_COMPLETE")
    if completion:
        return shell_complete(cli, {}, "edgeglm", "_EDGEGLM_COMPLETE", completion)
    try:
        with cli.make_context("edgeglm", list(arguments), obj=settings) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        raise _explain_usage(error) from error
    return 0


def _explain_usage(error: click.ClickException) -> UsageError:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    path = ctx.command_path if ctx else "edgeglm"
    what = path.removeprefix("edgeglm").strip() or "command line"
    return UsageError(what, error.format_message().rstrip("."), f"run {path} --help")
