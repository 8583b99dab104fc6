"""The ``edgeglm`` command: a group that imports a command's module only when that command runs."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeGuard

import click
from click.shell_completion import shell_complete

from edgeglm.errors import BudgetError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.suggest import nearest_name

# Name and short help of each command; the module edgeglm.cli.<name>, with _ for -, holds it under the name `command`.
COMMANDS = {
    "bench": "Measure how fast a bundle answers here, and in how much memory.",
    "build": "Build the TensorRT engines of a bundle, on the device that runs them.",
    "burn-test": "Run a bundle on a device, and compare its answers with this machine's.",
    "devices": "List the device profiles, or show every fact of one with its source.",
    "doctor": "Report what this machine has and what edgeglm can use of it.",
    "export": "Export a checkpoint to a bundle for a device.",
    "inspect": "Show what a bundle holds, needs and was made from.",
    "matrix": "Try models on targets in every precision and format, and write what works.",
    "plan": "Say what an export takes, and whether its bundle fits the device.",
    "run": "Answer a prompt from a bundle, and say what it took.",
    "validate": "Compare a bundle with the original on its task, and fail where it lost too much.",
    "verify": "Check every file of a bundle against its hash.",
}
# Those that need the extra.
HOST_SIDE = ("export", "matrix", "plan", "validate")

INTERRUPTED = 130
# 128 + SIGPIPE, with which a program ends whose reader went away.
BROKEN_PIPE = 141


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
        try:
            command: click.Command = importlib.import_module(module_of(cmd_name)).command
        except ModuleNotFoundError as error:
            why = f"needs {error.name}, which is not installed"
            package = "'edgeglm[export]'" if cmd_name in HOST_SIDE else "edgeglm"
            raise UnsupportedError(cmd_name, why, f"run pip install {package}") from error
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
    """The module of a command."""
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
    try:
        with _interrupted_once():
            return _run(sys.argv[1:] if arguments is None else arguments, settings)
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("edgeglm: interrupted", err=True)
        return INTERRUPTED
    except Exception as error:
        return _report(error, settings)


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Let the first Ctrl-C end the command, and the next ones not disturb it while it puts its files in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    # Whoever has the signal ignored (nohup, a shell's background) or handles it in another way keeps that.
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(arguments: Sequence[str], settings: Settings) -> int:
    completion = os.environ.get("_EDGEGLM_COMPLETE")
    if completion:
        return shell_complete(cli, {}, "edgeglm", "_EDGEGLM_COMPLETE", completion)
    status = 0
    try:
        with cli.make_context("edgeglm", list(arguments), obj=settings) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as end:
        status = end.exit_code
    # Here, where a closed pipe is caught, and not at the interpreter's exit, where it is not.
    if sys.stdout:  # None when the shell closed it
        sys.stdout.flush()
    return status


def _report(error: Exception, settings: Settings) -> int:
    if settings.debug:
        traceback.print_exception(error)
    if _disk_is_full(error):
        _discard_stdout()
    explained = _explain(error)
    for each in (explained, *explained.more):
        click.echo(f"edgeglm: {each}", err=True)
    return explained.exit_code


def _explain(error: Exception) -> EdgeglmError:
    if isinstance(error, EdgeglmError):
        return error
    if isinstance(error, click.ClickException):
        return _explain_usage(error)
    if _disk_is_full(error):
        return BudgetError(error.filename or "disk", "no space is left", "free some")
    return EdgeglmError(
        "internal error",
        f"{type(error).__name__}: {error}",
        "this is a bug in edgeglm, run edgeglm --debug COMMAND for the traceback",
    )


def _explain_usage(error: click.ClickException) -> UsageError:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    path = ctx.command_path if ctx else "edgeglm"
    what = path.removeprefix("edgeglm").strip() or "command line"
    return UsageError(what, error.format_message().rstrip("."), f"run {path} --help")


def _disk_is_full(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def _discard_stdout() -> None:
    # What is still buffered would raise again at the interpreter's exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
