"""An export killed at any moment, again and again: what stands in the end has the bytes of one that was left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.adversary.fuzzer import Fuzzer
from tests.export.tiny import SHAPES, save

SECONDS = 4.0  # about as long as an export of the tiny model takes


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(checkpoint: Path, target: Path) -> subprocess.Popen[bytes]:
    """An export in a process group of its own."""
    command = [sys.executable, "-m", "edgeglm", "export", str(checkpoint), "--target", "cpu", "-o", str(target)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_kills_leave_the_same_bytes_in_the_end(tmp_path: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer, checkpoint, target = fuzz("an export killed at a random moment"), tmp_path / "model", tmp_path / "bundle"
    save(SHAPES["glm"], checkpoint)
    assert start(checkpoint, tmp_path / "clean").wait() == 0
    want = tree(tmp_path / "clean")
    for number in fuzzer.attempts():
        shutil.rmtree(target, ignore_errors=True)
        for _ in range(fuzzer.random.randint(1, 3)):
            process = start(checkpoint, target)
            try:
                process.wait(fuzzer.random.uniform(0, SECONDS))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        status = start(checkpoint, target).wait()
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith("bundle.")]
        if status or left:
            fuzzer.fault(number, f"exit {status}, left: {left}")
        elif tree(target) != want:
            fuzzer.fault(
                number, f"other bytes: {[name for name, data in want.items() if tree(target).get(name) != data]}"
            )
        else:
            fuzzer.saw("same bytes")
