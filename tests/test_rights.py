"""A file or a folder that this user may not read or write is one line that names it, before work starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx")  # the exporter's reader

from tests.bundles import write_bundle

ROOT = Path(__file__).parents[1]
# Imports come first: another user may not even read the interpreter's own files.
WITHOUT_RIGHTS = """
import os, sys
from pathlib import Path
from edgeglm.bundle import load_bundle, read_manifest, verify_bundle
from edgeglm.exits import explain
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.write.target import check_target
from edgeglm.runtimes.text.sidecars import Sidecars
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
place = Path(sys.argv[1])
try:
    eval(sys.argv[2])
except Exception as error:
    told = explain(error)
    print(type(told).__name__, told)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may read; pytest's own may not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        for path in Path(folder).rglob("*"):
            path.chmod(0o755)


def checkpoint(place: Path) -> Path:
    folder = place / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def bundle(place: Path) -> Path:
    folder = place / "bundle"
    folder.mkdir()
    write_bundle(folder)
    return folder


def mine(place: Path) -> Path:
    """Give a folder, but not what is in it, to the user."""
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    return place


MAY_NOT = "cannot be read: this user may not list it; make it readable"
DENIED = "cannot be read: Permission denied; make it readable"
CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no right": (lambda place: checkpoint(place).chmod(0), "Checkpoint.open(place / 'model')", f"model: {MAY_NOT}"),
    "no list": (lambda place: checkpoint(place).chmod(0o311), "Checkpoint.open(place / 'model')", f"model: {MAY_NOT}"),
    "no entry": (lambda place: checkpoint(place).chmod(0o444), "Checkpoint.open(place / 'model')", f"model: {MAY_NOT}"),
    "config": (
        lambda place: (checkpoint(place) / "config.json").chmod(0),
        "Checkpoint.open(place / 'model')",
        f"config.json: {DENIED}",
    ),
    "template": (
        lambda place: (checkpoint(place) / "config.json").chmod(0),
        "Sidecars(place / 'model').bytes('config.json')",
        f"config.json: {DENIED}",
    ),
    "weights": (
        lambda place: (bundle(place) / "decoder/weights.bin").chmod(0),
        "verify_bundle(load_bundle(place / 'bundle'))",
        f"weights.bin: {DENIED}",
    ),
    "module": (lambda place: (bundle(place) / "decoder").chmod(0), "load_bundle(place / 'bundle')", f": {DENIED}"),
    "bundle": (lambda place: bundle(place).chmod(0), "read_manifest(place / 'bundle')", f"bundle: {DENIED}"),
    "another's bundle": (
        lambda place: (bundle(mine(place)) / "decoder").chmod(0o555),
        "check_target(place / 'bundle')",
        "cannot be removed: Permission denied; remove it, or give a new folder",
    ),
    "another's partial bundle": (
        lambda place: (mine(place) / "new.partial").mkdir(mode=0o555),
        "check_target(place / 'new')",
        "new.partial: cannot be written: Permission denied; remove it, or give a new folder",
    ),
    "what nobody foresaw": (
        lambda place: checkpoint(place).chmod(0),
        "open(place / 'model' / 'config.json')",
        "config.json: cannot be used by this user: Permission denied; allow it, or give another place",
    ),
}


@pytest.mark.parametrize(("prepare", "call", "line"), CASES.values(), ids=CASES)
def test_what_this_user_may_not_is_one_line(
    prepare: Callable[[Path], object], call: str, line: str, place: Path
) -> None:
    prepare(place)
    command = [sys.executable, "-c", WITHOUT_RIGHTS, str(place), call]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("UsageError "), done.stdout + done.stderr
    assert line in done.stdout
