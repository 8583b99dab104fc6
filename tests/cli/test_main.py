"""The command line as its users meet it: help, errors, exit codes, interrupts and closed pipes."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType

import click
import pytest

from edgeglm.cli import main as cli
from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError

EDGEGLM = [sys.executable, "-m", "edgeglm"]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Register a command ``fails`` that raises what the test puts into the returned list."""
    errors: list[BaseException] = []
    module = ModuleType("edgeglm.cli.fails")

    @click.command("fails")
    @click.option("--size", type=int)
    def command(size: int | None) -> None:
        click.echo("some output")
        raise errors[0]

    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgeglm.cli.fails", module)
    monkeypatch.setitem(cli.COMMANDS, "fails", "Fail.")
    return errors


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_has_the_help_of_the_table_and_takes_json(name: str) -> None:
    needed = "uvicorn" if name == "serve" else "onnx_ir"
    if name in cli.EXTRAS and not find_spec(needed):
        remedy = re.escape(f"is not installed; run pip install 'edgeglm[{cli.EXTRAS[name]}]'")
        with pytest.raises(UnsupportedError, match=remedy):
            cli.cli.get_command(click.Context(cli.cli), name)
        return
    command = importlib.import_module(cli.module_of(name)).command
    assert command.name == name
    assert command.get_short_help_str(limit=200) == cli.COMMANDS[name]
    if name not in ("run", "serve"):  # whose options are those of the runner's own programs
        assert any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    status, out, err = run(capsys, flag)
    assert (status, err) == (0, "")
    words = " ".join(out.split())
    assert all(f"{name} {short_help}" in words for name, short_help in cli.COMMANDS.items())


def test_without_a_command_the_help_goes_to_stderr_with_the_usage_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = run(capsys)
    assert (status, out) == (2, "")
    assert err.startswith("Usage: edgeglm")


def test_version_is_that_of_the_installed_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"edgeglm {metadata.version('edgeglm')}\n", "")


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "edgeglm: docter: is not a command; did you mean doctor?\n"
    assert run(capsys, "docter") == (2, "", expected)


def test_an_unknown_option_is_one_line_with_the_way_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "doctor", "--jsno")
    assert (status, out) == (2, "")
    assert err.startswith("edgeglm: doctor: No such option '--jsno'")
    assert err.endswith("; run edgeglm doctor --help\n")
    assert err.count("\n") == 1


def test_an_unknown_option_before_the_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "--colour", "doctor")
    assert status == 2
    assert err == "edgeglm: command line: No such option '--colour'; run edgeglm --help\n"


@pytest.mark.usefixtures("fails")
def test_a_value_of_the_wrong_type_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "fails", "--size", "big")
    assert (status, out) == (2, "")
    assert err.startswith("edgeglm: fails: Invalid value for '--size'")
    assert err.count("\n") == 1


def test_a_user_error_is_one_line_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], fails: list[BaseException]
) -> None:
    fails.append(BudgetError("--max-ram", "is 1 GiB, 2 GiB are needed", "raise it"))
    status, _, err = run(capsys, "fails")
    assert status == 5
    assert err == "edgeglm: --max-ram: is 1 GiB, 2 GiB are needed; raise it\n"


def test_debug_adds_the_traceback_of_a_user_error(
    capsys: pytest.CaptureFixture[str], fails: list[BaseException]
) -> None:
    fails.append(BudgetError("--max-ram", "is too small", "raise it"))
    status, _, err = run(capsys, "--debug", "fails")
    assert status == 5
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("\nedgeglm: --max-ram: is too small; raise it\n")


def test_an_unexpected_exception_is_one_line_that_owns_the_bug(
    capsys: pytest.CaptureFixture[str], fails: list[BaseException]
) -> None:
    fails.append(KeyError("x"))
    status, _, err = run(capsys, "fails")
    assert status == 1
    assert err.startswith("edgeglm: internal error: KeyError: 'x'; this is a bug in edgeglm")
    assert err.count("\n") == 1


def test_a_file_that_memory_was_too_short_for_is_not_called_damaged(
    capsys: pytest.CaptureFixture[str], fails: list[BaseException]
) -> None:
    error = DamagedFileError("decoder/model.onnx", "cannot be loaded", "export it again")
    error.__cause__ = RuntimeError("std::bad_alloc")
    fails.append(error)
    status, _, err = run(capsys, "fails")
    assert (status, err) == (5, "edgeglm: memory: is not enough for this; free some, or allow the process more\n")


def test_an_interrupt_ends_with_its_own_code(capsys: pytest.CaptureFixture[str], fails: list[BaseException]) -> None:
    fails.append(KeyboardInterrupt())
    status, _, err = run(capsys, "fails")
    assert (status, err) == (130, "edgeglm: interrupted\n")


def test_a_reader_that_went_away_is_met_with_silence() -> None:
    # The shell's `edgeglm doctor | true`, with a pipe whose reader is gone before the first write.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*EDGEGLM, "doctor"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_no_bug() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([*EDGEGLM, "doctor"], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode == 5
    assert done.stderr == "edgeglm: disk: no space is left; free some\n"


def test_a_closed_stdout_is_no_bug() -> None:
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *EDGEGLM, "doctor"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_bash_completion_offers_the_commands() -> None:
    environment = {
        **os.environ,
        "_EDGEGLM_COMPLETE": "bash_complete",
        "COMP_WORDS": "edgeglm d",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(EDGEGLM, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,devices", "plain,doctor"]


def test_help_loads_hardly_more_than_click() -> None:
    """Modules are counted, for a time depends on what else the machine does; benchmarks are for that."""
    assert loaded([*EDGEGLM[1:], "--help"]) < 1.5 * loaded(["-c", "import click"])


def loaded(arguments: list[str]) -> int:
    """Return how many modules a Python imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
    return sum(line.startswith("import time:") for line in done.stderr.splitlines())
