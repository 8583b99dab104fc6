"""The program on a terminal, and inside a hard limit of memory."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.runtimes.conftest import HardLimit
from tests.runtimes.demo import SCREEN


def test_a_terminal_without_a_prompt_is_a_chat(exact: Path) -> None:
    command = [sys.executable, "-m", "edgeglm.runtimes", str(exact), "--image", str(SCREEN)]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        os.write(ours, b"Select OK\n\nGo back\n\x04")
        told = process.communicate(timeout=60)[0].decode()
        os.close(ours)
    assert process.returncode == 0
    assert told.count("<answer>do(action=") == 2
    assert told.count('action  {"action": ') == 1  # the report of the last turn, at the end
    assert " of them known" in told
    assert told.rstrip().splitlines()[-1].startswith("memory  peak RSS")


@pytest.mark.parametrize("more", [[], ["--json"], ["--memory-plot", "plot.svg"]])
def test_without_a_terminal_a_prompt_is_needed(exact: Path, tmp_path: Path, more: list[str]) -> None:
    command = [sys.executable, "-m", "edgeglm.runtimes", str(exact), *more]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edgeglm: --prompt: is needed where no one can chat; say what to do\n"


def test_a_plot_is_drawn_with_the_phases(exact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeglm.runtimes", str(exact), "--image", str(SCREEN), "--prompt", "Select OK"]
    subprocess.run([*command, "--memory-plot", "plot.svg"], cwd=tmp_path, capture_output=True, check=True)
    assert ">encode image</text>" in (tmp_path / "plot.svg").read_text()


def test_it_runs_inside_1_3_times_its_reported_peak_whatever_is_outside(exact: Path, hard_limit: HardLimit) -> None:
    run = [sys.executable, "-m", "edgeglm.runtimes", str(exact), "--image", str(SCREEN), "--prompt", "Select OK"]
    free = json.loads(subprocess.run([*run, "--json"], capture_output=True, check=True).stdout)

    def inside(budget: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(hard_limit(budget, [*run, "--json"]), capture_output=True, text=True, check=False)

    held = inside(int(1.3 * free["peak_rss_bytes"]))
    assert held.returncode == 0, held.stderr
    assert json.loads(held.stdout)["text"] == free["text"]
    assert inside(free["peak_rss_bytes"] // 4).returncode != 0  # the limit is one
