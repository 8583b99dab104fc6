"""Low-RSS mode: the engine's own file of a module, made once, checked always, with the same answers."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeglm.errors import BudgetError
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.text.messages import message
from tests.runtimes.demo import SCREEN, demo_bundle

QUESTION = [message("user", "Select OK", SCREEN)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(folder: Path, low_rss: bool) -> str:
    with Runner(folder, low_rss=low_rss) as runner:
        return runner.answer(QUESTION).text


def files(tmp_path: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache/edgeglm/prepacked").glob("*/*")}


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp(request.param) / "bundle", "cpu", request.param)


def test_packed_weights_are_made_once_and_answer_the_same(quantized: Path, tmp_path: Path) -> None:
    plain = answer(quantized, low_rss=False)
    assert files(tmp_path) == {}
    assert answer(quantized, low_rss=True) == plain
    made = files(tmp_path)
    assert made.keys() == {"model.onnx", "weights.bin", "entry"}
    assert answer(quantized, low_rss=True) == plain
    assert files(tmp_path) == made


def test_a_changed_file_is_made_again_and_never_run(exact: Path, tmp_path: Path) -> None:
    plain = answer(exact, low_rss=True)
    weights = next((tmp_path / "cache/edgeglm/prepacked").glob("*/weights.bin"))
    good = weights.read_bytes()
    weights.write_bytes(bytes(len(good)))
    assert answer(exact, low_rss=True) == plain
    assert weights.read_bytes() == good


def test_a_full_disk_is_one_line_and_leaves_nothing(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 1 << 20))
    with pytest.raises(BudgetError, match=r"--low-rss: the packed weights may take about .*, and .* has 1MiB"):
        answer(exact, low_rss=True)
    assert files(tmp_path) == {}
