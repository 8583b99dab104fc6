"""Running commands as a user does, in this process or in one of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from edgeglm.cli.main import main
from tests.loaded_workers import Loaded

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"edgeglm: [^\n]+: [^\n]+; [^\n]+\n")
Done = tuple[int, str, str]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Exit code, stdout and stderr of a command in this process."""
    status = main([str(argument) for argument in arguments])
    return (status, *capsys.readouterr())


def start(
    *arguments: object, env: Mapping[str, str] | None = None, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "edgeglm", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT, env=env)


def end(process: subprocess.Popen[str]) -> Done:
    """Exit code, stdout and stderr of a process, when it has ended."""
    out, err = process.communicate()
    return process.returncode, out, err


def run_loaded(loaded: Loaded, *arguments: object) -> Done:
    """Exit code, stdout and stderr of a command in a process of its own, which has imported it already."""
    with closing(loaded.command(*arguments)) as process:
        out, err = process.stdout.read(), process.stderr.read()
        return process.wait(), out.decode(), err.decode()


def check_failure(done: Done, status: int, why: str) -> None:
    """A failure has its exit code, an empty stdout, and one line that matches `why` on stderr."""
    assert done[:2] == (status, "")
    assert LINE.fullmatch(done[2]), done[2]
    assert re.search(why, done[2]), done[2]


def left_of(target: Path) -> list[str]:
    """What stands where a bundle would be written."""
    return [path.name for path in (target, target.with_name(f"{target.name}.partial")) if path.exists()]
