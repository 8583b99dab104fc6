"""``--cluster``: a local Ray of two workers, one of which is killed; and what is asked wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optuna")

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import load_study
from optuna.trial import TrialState

from edgeglm.errors import BudgetError, UsageError
from edgeglm.export import cluster
from edgeglm.export.api import Progress, SearchRequest, search
from edgeglm.export.search.study import NAME
from tests.cli.commands import check_failure, end, run, start
from tests.cli.test_validate_text import write_text, write_tokenizer
from tests.export.tiny import SHAPES, save

Capture = pytest.CaptureFixture[str]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs pip install 'edgeglm[cluster]'")


def children(parent: int) -> dict[int, str]:
    """Return the command line of each child of a process."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(folder.name)
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def at_work(driver: int) -> list[int]:
    """Return the workers of a driver's Ray that are in the middle of a trial: it has begun a process of its own."""
    raylets = [pid for pid, command in children(driver).items() if "raylet/raylet" in command]
    workers = [pid for raylet in raylets for pid, command in children(raylet).items() if "ray::_answer" in command]
    return [worker for worker in workers if children(worker)]


@pytest.fixture
def two_processors() -> Iterator[None]:
    """Let what is started have two processors, where the machine has so many."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(2 if (os.cpu_count() or 1) > 1 else 1))
    yield
    os.sched_setaffinity(0, mine)


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("two_processors")
def test_a_trial_whose_worker_is_killed_is_made_again(tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "text.txt"
    save(replace(SHAPES["glm4"], layers=1), model)
    write_tokenizer(model / "tokenizer.json")
    write_text(text, 64)
    asked = ["--target", "cpu", "--accuracy-drop", "40%", "--calibration", text, "--for", "memory", "--trials", 2]
    process = start("search", model, *asked, "--cluster", "local", "-o", tmp_path / "bundle", "--json")
    while not (workers := at_work(process.pid)) and process.poll() is None:
        time.sleep(0.3)
    assert workers, end(process)[2]
    rays = children(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    status, out, err = end(process)
    assert status == 0, err
    ladder = json.loads(out)["ladder"]
    assert len({rung["precision"] for rung in ladder}) == 2
    assert all(rung["figures"]["peak_rss_bytes"] > 1e6 for rung in ladder)
    study = load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(tmp_path / "bundle.study"))))
    tried = [trial.state for trial in study.trials if trial.state != TrialState.WAITING]
    assert tried.count(TrialState.COMPLETE) == 2
    assert TrialState.RUNNING not in tried
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.study", "model", "text.txt"]
    # Ray ends with the search, and leaves no folder.
    assert rays
    assert not [pid for pid in (*rays, *workers) if Path(f"/proc/{pid}").exists()]
    folders = {Path(word.partition("=")[2]) for line in rays.values() for word in line.split() if "temp" in word}
    assert not [folder for folder in folders if folder.name.startswith("edgeglm-ray") and folder.exists()]


@pytest.mark.parametrize("command", [["search", "--target", "cpu", "--accuracy-drop", "1%"], ["matrix"]])
def test_without_the_extra_it_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    check_failure(run(capsys, *command, "--cluster", "local"), 2, r"pip install 'edgeglm\[cluster\]'")
    assert not list(tmp_path.iterdir())


@needs_ray
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("nonsense", "is no HOST:PORT"),
        ("127.0.0.1:99999999", "nothing answers"),
    ],
)
def test_an_address_where_nothing_is_is_refused(address: str, why: str) -> None:
    with pytest.raises(UsageError, match=why), cluster.connect(address, 1 << 40):
        pass


@needs_ray
def test_a_search_looks_for_its_cluster_before_any_work(tmp_path: Path) -> None:
    stages = list[Progress]()
    request = SearchRequest(target="cpu", accuracy_drop=0.01, output=tmp_path / "bundle", cluster="127.0.0.1:1")
    with pytest.raises(UsageError, match="nothing answers there"):
        search(request, stages.append)
    assert stages == []
    assert not list(tmp_path.iterdir())


@needs_ray
def test_memory_without_room_for_ray_is_refused() -> None:
    with pytest.raises(BudgetError, match="Ray itself takes"), cluster.connect("local", 1 << 28):
        pass
