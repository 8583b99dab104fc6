"""Folders for a while: gone afterwards, and those of killed processes by the next one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgeglm.scratch import scratch_folder

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from edgeglm.scratch import scratch_folder
with scratch_folder("held") as folder:
    (folder / "file").write_bytes(b"1")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def hold() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    process.communicate()


def test_it_is_gone_afterwards_whatever_happens(place: Path) -> None:
    def work() -> None:
        with scratch_folder("one") as folder:
            (folder / "file").write_bytes(b"1")
            assert folder.parent == place
            assert folder.stat().st_mode & 0o777 == 0o700
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(place: Path) -> None:
    (dead, left), (alive, held) = hold(), hold()
    end(dead, signal.SIGKILL)
    assert (left / "file").exists()
    mine = place / "edgeglm-of-the-user"
    mine.mkdir()
    others = place / "something.partial"
    others.mkdir()
    process, own = hold()
    try:
        assert (left.exists(), (held / "file").exists(), own.exists()) == (False, True, True)
        assert mine.exists()
        assert others.exists()
    finally:
        end(process, signal.SIGTERM)
        end(alive, signal.SIGTERM)


def test_a_folder_that_a_sweep_takes_before_it_is_locked_is_made_anew(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    make, locks = tempfile.mkdtemp, []

    def taken(*names: str) -> str:
        folder = make(*names)
        made.append(Path(folder))
        if len(made) == 1:  # another process is removing it
            locks.append(os.open(folder, os.O_RDONLY))
            fcntl.flock(locks[0], fcntl.LOCK_EX)
        if len(made) == 2:  # another process has removed it
            os.rmdir(folder)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", taken)
    with scratch_folder("raced") as folder:
        assert folder == made[2]
        assert folder.exists()
    os.close(locks[0])


def test_every_folder_for_a_while_is_one_of_these() -> None:
    for top in ("edgeglm", "export", "runtimes", "devices"):
        for path in (ROOT / top).rglob("*.py"):
            text = path.read_text()
            assert path.name == "scratch.py" or "mkdtemp" not in text, path
            assert "TemporaryDirectory" not in text, path
