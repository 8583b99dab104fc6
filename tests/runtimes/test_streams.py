"""How the runner ends, in each of its forms: closed and full streams, other encodings, and what no one foresaw."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.runtimes import program
from tests.cli.commands import LINE

PROGRAMS = [["run.pyz"], ["-m", "edgeglm", "run"]]
OK = ("--prompt", "Select OK", "--max-new-tokens", "3")
CHINESE = ("--prompt", "点一下确定", "--max-new-tokens", "40")


def command(bundle: Path, form: list[str], *arguments: str) -> list[str]:
    if form == ["run.pyz"]:
        return [sys.executable, str(bundle / "run.pyz"), *arguments]
    return [sys.executable, *form, str(bundle), *arguments]


def run(line: list[str], **how: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 (Popen's own)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(line, check=False, timeout=60, text=True, errors="replace", **(streams | how))


def close(*numbers: int) -> Callable[[], None]:
    def before_exec() -> None:
        for number in numbers:
            os.close(number)

    return before_exec


@pytest.mark.parametrize("form", PROGRAMS, ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_line(exact: Path, form: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = run(command(exact, form, *OK), stdout=full)
    assert (done.returncode, done.stderr) == (5, "edgeglm: disk: no space is left; free some\n")


@pytest.mark.parametrize("form", PROGRAMS, ids=" ".join)
def test_closed_streams_lead_nowhere(exact: Path, form: list[str]) -> None:
    done = run(command(exact, form, *OK), preexec_fn=close(1))
    assert (done.returncode, done.stderr) == (0, "")
    done = run(command(exact, form), preexec_fn=close(0))
    assert (done.returncode, done.stdout) == (2, "")
    assert LINE.fullmatch(done.stderr), done.stderr
    assert run(command(exact, form, *OK), preexec_fn=close(0, 1, 2)).returncode == 0
    with open("/dev/full", "wb") as full:
        assert run(command(exact, form), stderr=full).returncode == 2


@pytest.mark.parametrize("form", PROGRAMS, ids=" ".join)
def test_an_answer_in_characters_that_the_terminal_lacks_is_shown_as_escapes(exact: Path, form: list[str]) -> None:
    there = run(command(exact, form, *CHINESE), env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    lacking = run(command(exact, form, *CHINESE), env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (there.returncode, lacking.returncode) == (0, 0), lacking.stderr
    answer = there.stdout.partition("\n\n")[0]
    assert lacking.stdout.partition("\n\n")[0] == answer.encode("latin-1", "backslashreplace").decode(errors="replace")


@pytest.mark.parametrize("count", ["0", "257", "2147483648", "1e3"])
def test_a_number_of_threads_that_no_machine_has_is_refused(exact: Path, count: str) -> None:
    with pytest.raises(UsageError, match="--threads"):
        program.run([str(exact), *OK, "--threads", count])


@pytest.mark.parametrize("cache", ["/proc/x", "/dev/null"])
def test_packed_weights_without_a_place_are_unsupported(
    exact: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    with pytest.raises(UnsupportedError, match="--low-rss: the packed weights cannot be kept in "):
        program.run([str(exact), *OK, "--low-rss"])


BUG = """\
import onnxruntime.capi.onnxruntime_inference_collection as capi
def fail(*_): raise {error}
capi.InferenceSession.run_with_iobinding = fail
"""


@pytest.mark.parametrize("form", PROGRAMS, ids=" ".join)
@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        ("type('PanicException', (BaseException,), {})('no')", 1, "internal error: PanicException: no; this is a bug"),
        ("RuntimeError('std::bad_alloc')", 5, "memory: is not enough for this; "),
    ],
)
def test_what_no_one_foresaw_is_one_line_too(
    exact: Path, tmp_path: Path, form: list[str], error: str, status: int, expected: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUG.format(error=error))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = run(command(exact, form, *OK), env=environment)
    assert done.returncode == status
    assert done.stderr.startswith(f"edgeglm: {expected}")
    assert LINE.fullmatch(done.stderr), done.stderr
    if status == 1:
        told = run([*command(exact, form, *OK), "--debug"], env=environment).stderr
        assert told.startswith("Traceback (most recent call last)")


def test_too_little_address_space_is_one_line(exact: Path) -> None:
    line = command(exact, PROGRAMS[0], *OK)
    done = run(
        ["sh", "-c", 'ulimit -v 150000; exec "$@"', "sh", *line], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    )
    assert done.returncode == 5, done.stderr
    assert "edgeglm: memory: is not enough for this; " in done.stderr
    assert "Traceback" not in done.stderr
