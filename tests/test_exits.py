"""How a program ends that a signal interrupts: one line, its exit code, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeglm.exits import INTERRUPTED, TERMINATED, run_program

SIGNALS = [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGTERM, TERMINATED, "terminated")]
SLOW = """
import sys, time
from edgeglm.exits import run_program
from edgeglm.scratch import scratch_folder

def body():
    with scratch_folder("slow") as folder:
        (folder / "file").write_bytes(b"1")
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("putting in order", flush=True)
            time.sleep(float(sys.argv[1]))  # meanwhile it is told again

sys.exit(run_program(body, debug=lambda: False, again="again"))
"""
Capture = pytest.CaptureFixture[str]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1)


def run(body: Callable[[], None]) -> int:
    before = [signal.getsignal(number) for number, *_ in SIGNALS]
    try:
        return run_program(body, debug=lambda: False, again="again")
    finally:
        for (number, *_), handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_that_a_library_makes_an_error_of_is_the_signal(
    number: int, code: int, word: str, capsys: Capture
) -> None:
    def body() -> None:
        try:
            send(number)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    assert threading.current_thread() is threading.main_thread()
    assert run(body) == code
    assert capsys.readouterr().err == f"edgeglm: {word}\n"


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_program_puts_its_files_in_order_and_says_one_line(number: int, code: int, word: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "putting in order\n"
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[1], process.returncode) == (f"edgeglm: {word}\n", code)
    assert list(tmp_path.iterdir()) == []


def test_a_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "60"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "putting in order\n"
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(tmp_path: Path) -> None:
    """It comes in the middle of an import, from a module that stands in for a slow one."""
    (tmp_path / "click.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)")
    done = subprocess.run(
        [sys.executable, "-m", "edgeglm", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "edgeglm: interrupted\n")
