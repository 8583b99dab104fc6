"""An export killed at any moment, again and again: what stands in the end has the bytes of one that was left alone."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeglm.cli.main import main
from tests.adversary.fuzzer import Fuzzer
from tests.export.tiny import SHAPES, save
from tests.loaded_workers import Loaded

SECONDS = 2.0  # about as long as an export of the tiny model takes, when the exporter is loaded and has its traces


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_kills_leave_the_same_bytes_in_the_end(
    tmp_path: Path, fuzz: Callable[[str], Fuzzer], loaded_workers: Loaded
) -> None:
    fuzzer, checkpoint, target = fuzz("an export killed at a random moment"), tmp_path / "model", tmp_path / "bundle"
    save(SHAPES["glm"], checkpoint)
    export = ("export", str(checkpoint), "--target", "cpu", "-o")
    assert main([*export, str(tmp_path / "clean")]) == 0
    want = tree(tmp_path / "clean")
    for number in fuzzer.attempts():
        shutil.rmtree(target, ignore_errors=True)
        for _ in range(fuzzer.random.randint(1, 3)):
            with closing(loaded_workers.command(*export, target)) as process:  # killed at the end of the block
                process.ends_within(fuzzer.random.uniform(0, SECONDS))
        with closing(loaded_workers.command(*export, target)) as process:
            status = process.wait()
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith("bundle.")]
        if status or left:
            fuzzer.fault(number, f"exit {status}, left: {left}")
        elif tree(target) != want:
            fuzzer.fault(
                number, f"other bytes: {[name for name, data in want.items() if tree(target).get(name) != data]}"
            )
        else:
            fuzzer.saw("same bytes")
