"""A search, on a small model, with the recorded errors of what was emitted as its metric."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optuna")

from optuna.trial import TrialState

from edgeglm.bundle import load_bundle, read_manifest, verify_bundle
from edgeglm.errors import BudgetError, DamagedFileError, UsageError
from edgeglm.export.pipeline.ladder import Means, workplace
from edgeglm.export.prepare.types import Request
from edgeglm.export.search.aim import Aim
from edgeglm.export.search.search import Search
from edgeglm.export.search.study import check_study, open_study
from tests.export.pipeline.test_ladder import SAMPLES, errors_within, small

__all__ = ["small"]
LIMIT = 0.1


def search(request: Request, folder: Path, trials: int) -> Search:
    """Run a search in a folder; returns it."""
    aim = Aim("size", trials, folder / "study", "one", None, lambda _: {})
    with workplace(folder / "bundle") as work:
        means = Means(work, SAMPLES, None, errors_within(LIMIT), lambda _: None, lambda _: None, lambda _: None)
        found = Search(request, means, aim=aim)
        found.climb()
        for kept in work.iterdir():
            verify_bundle(load_bundle(kept))
            made, best = read_manifest(kept), found.best
            assert best  # which alone is kept
            assert made.bundle_bytes - made.files["report.html"].bytes == best.bundle_bytes
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, small: Request) -> tuple[Path, Search]:
    folder = tmp_path_factory.mktemp("search")
    return folder, search(small, folder, 6)


def test_the_smallest_that_passes_is_the_best(searched: tuple[Path, Search]) -> None:
    _, found = searched
    assert len(found.rungs) == 6
    passing = [rung for rung in found.rungs if rung.passed]
    assert found.best == min(passing, key=lambda rung: rung.bundle_bytes)
    assert not found.rungs[0].passed  # all in INT4
    assert len({rung.precision for rung in found.rungs}) == 6
    # What cannot be the smallest any more was not measured.
    sizes = [rung.bundle_bytes for rung in found.rungs]
    for number in range(1, 6):
        before = [rung.bundle_bytes for rung in found.rungs[:number] if rung.passed]
        assert not before or sizes[number] < min(before)


def test_it_goes_on_where_it_was_killed(searched: tuple[Path, Search], small: Request) -> None:
    """With the same attempts, and with the one that was under way."""
    folder, found = searched
    study = open_study(folder / "study", "one")
    knobs = study.trials[0].distributions
    left = study.ask(knobs)
    again = search(small, folder, 6)
    assert again.rungs == found.rungs
    assert again.precision == found.precision
    trials = open_study(folder / "study", "one").trials
    assert trials[left.number].state == TrialState.FAIL
    waiting = [trial.system_attrs["fixed_params"] for trial in trials if trial.state == TrialState.WAITING]
    assert waiting == [left.params]


def test_a_study_of_others_is_refused(searched: tuple[Path, Search]) -> None:
    folder, _ = searched
    with pytest.raises(
        UsageError, match="is a study of another model, device, limit, goal or version, or of other samples or options"
    ):
        open_study(folder / "study", "two")


def test_a_study_beside_a_bundle_needs_no_folder_yet(tmp_path: Path) -> None:
    check_study(tmp_path / "new" / "bundle.study", "one", is_named=False)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(UsageError, match="No such file or directory"):
        check_study(tmp_path / "new" / "my.study", "one", is_named=True)


@pytest.mark.parametrize("content", [b"no study\n", b"{}\n", b"[1]\n", b"\xff\xfe"])
def test_what_is_no_study_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "study").write_bytes(content)
    with pytest.raises(DamagedFileError, match="is no study"):
        open_study(tmp_path / "study", "one")


def test_a_line_that_was_torn_loses_nothing_before_it(tmp_path: Path) -> None:
    """As where the disk is full, or the power goes: what is appended afterwards begins a line of its own."""
    file = tmp_path / "study"
    open_study(file, "one").ask()
    file.write_bytes(file.read_bytes()[:-9])
    again = open_study(file, "one")
    assert again.trials == []
    again.tell(again.ask(), [1.0, 2.0])
    assert [trial.state for trial in open_study(file, "one").trials] == [TrialState.COMPLETE]


def test_no_lock_outlives_its_process(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from edgeglm.export.search.study import Lock
Lock(pathlib.Path({str(tmp_path / "study")!r})).acquire()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    open_study(tmp_path / "study", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_bundle_that_the_board_has_no_room_for_is_refused_alone(small: Request, tmp_path: Path) -> None:
    def figures(folder: Path) -> dict[str, float]:
        if "int4-128" in {module.precision for module in read_manifest(folder).modules}:
            raise BudgetError("ssh board", "1GiB of memory are too little there", "export a smaller bundle")
        return {"latency": 5.0}

    aim = Aim("latency", 2, tmp_path / "study", "one", None, figures)
    with workplace(tmp_path / "bundle") as work:
        means = Means(work, SAMPLES, None, errors_within(1.0), lambda _: None, lambda _: None, lambda _: None)
        search = Search(small, means, aim=aim)
        search.climb()
    smallest, second = search.rungs
    assert (smallest.passed, smallest.refused) == (False, "ssh board: 1GiB of memory are too little there")
    assert (second.passed, second.figures) == (True, {"answer_ms": 5.0})
    assert search.best == second
