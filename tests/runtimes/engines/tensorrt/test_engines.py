"""Engines are built once, for exactly what they were built from, and whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'edgeglm[tensorrt]'")
pytest.importorskip("onnx")

import json

from onnx.helper import make_node

from edgeglm.bundle import Bundle
from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.large_entries import RECORD
from edgeglm.machine import read_machine
from edgeglm.runtimes.engines.tensorrt.build import build_engines
from edgeglm.runtimes.engines.tensorrt.cache import ENGINE, Engine, engine_for, input_ranges
from edgeglm.runtimes.engines.tensorrt.library import Library, load_library
from tests.cli.commands import Done, end, start
from tests.runtimes.engines.tensorrt.graphs import HALF, graph, matmul, write_bundle


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(["tensorrt_rtx"])


def make(bundle: Bundle, library: Library, sm: int = 86) -> Engine:
    module = bundle.module("decoder")
    assert module is not None
    return engine_for(bundle, module, library, sm)


def left_in(cache: Path) -> list[str]:
    """What is there."""
    return sorted(path.name for path in cache.iterdir())


def test_an_engine_is_built_once(tmp_path: Path, cache: Path, library: Library) -> None:
    bundle = write_bundle(tmp_path / "bundle", matmul())
    first, second = make(bundle, library), make(bundle, library)
    assert (first.fresh, second.fresh) == (True, False)
    assert second.record == first.record
    assert first.record.built_by == library.title
    assert first.record.sm == 86
    assert first.path.stat().st_size == first.record.bytes
    assert left_in(cache) == [first.path.parent.name]


def test_whatever_changes_makes_another_engine(tmp_path: Path, cache: Path, library: Library) -> None:
    bundle = write_bundle(tmp_path / "bundle", matmul())
    engines = [make(bundle, library), make(bundle, library, sm=75)]
    engines.append(make(write_bundle(tmp_path / "weights", matmul(2.0)), library))
    for context in (512, 1024):
        bundle = write_bundle(tmp_path / "context", matmul(), shape=("past", 8), context=context)
        engines.append(make(bundle, library))
    assert all(engine.fresh for engine in engines)
    assert len({engine.path for engine in engines}) == len(engines)


def test_zeros_of_the_pattern_that_gpus_skip_make_an_engine_of_their_own(
    tmp_path: Path, cache: Path, library: Library
) -> None:
    plain, half, pattern = (
        write_bundle(tmp_path / str(sparse), matmul(), sparse=sparse) for sparse in (None, "50%", "2:4")
    )
    engines = [make(bundle, library) for bundle in (plain, half, pattern)]
    assert [engine.fresh for engine in engines] == [True, False, True]
    assert [engine.record.sparse for engine in engines] == [False, False, True]
    assert build_engines(tmp_path / "2:4", 86, lambda file, done: None).proof.endswith(
        "may take kernels that skip zeros"
    )
    assert "zeros" not in build_engines(tmp_path / "50%", 86, lambda file, done: None).proof


def flip(folder: Path) -> None:
    data = bytearray((folder / ENGINE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / ENGINE).write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip, id="a flipped bit"),
        pytest.param(lambda folder: os.truncate(folder / ENGINE, 100), id="cut off"),
        pytest.param(lambda folder: (folder / ENGINE).unlink(), id="no engine"),
        pytest.param(lambda folder: (folder / RECORD).unlink(), id="no record"),
        pytest.param(lambda folder: (folder / RECORD).write_text("{"), id="half a record"),
    ],
)
def test_a_damaged_one_is_built_again(
    damage: Callable[[Path], object], tmp_path: Path, cache: Path, library: Library
) -> None:
    bundle = write_bundle(tmp_path / "bundle", matmul())
    folder = make(bundle, library).path.parent
    damage(folder)
    again = make(bundle, library)
    assert again.fresh
    assert again.path.parent == folder
    assert not make(bundle, library).fresh


def test_the_ranges_are_those_of_the_context(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", matmul(), shape=("total", "past", "sequence", 8), context=1000)
    module = bundle.module("decoder")
    assert module is not None
    assert input_ranges(bundle, module) == {"x": ((1, 0, 1, 8), (756, 500, 256, 8), (1255, 999, 256, 8))}


def test_a_dimension_without_a_range_is_refused(tmp_path: Path, cache: Path, library: Library) -> None:
    bundle = write_bundle(tmp_path / "bundle", matmul(), shape=("s0", 8))
    with pytest.raises(UnsupportedError, match=r"its input x has a dimension 's0', for which there is no range"):
        make(bundle, library)


def test_a_graph_that_is_refused_leaves_nothing(tmp_path: Path, cache: Path, library: Library) -> None:
    wrong = graph([make_node("Unique", ["x"], ["y"], name="set")], [("x", HALF, [8])], [("y", HALF, ["n"])])
    with pytest.raises(UnsupportedError, match=r"node set \(Unique\): .* does not have the operator Unique"):
        make(write_bundle(tmp_path / "bundle", wrong, shape=(8,)), library)
    assert left_in(cache) == []


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, cache: Path, library: Library) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(UnsupportedError, match="others may write there"):
        make(write_bundle(tmp_path / "bundle", matmul()), library)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, cache: Path, library: Library) -> None:
    cache.parents[1].write_text("a file, where the cache folder would be")
    with pytest.raises(UnsupportedError, match=r"model.onnx: its engine cannot be kept in .*: Not a directory; set"):
        make(write_bundle(tmp_path / "bundle", matmul()), library)


def test_a_build_that_memory_is_too_short_for_is_refused(
    tmp_path: Path, cache: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(read_machine(), memory_available_bytes=100)
    monkeypatch.setattr("edgeglm.runtimes.engines.tensorrt.cache.read_machine", lambda: short)
    with pytest.raises(BudgetError, match=r"takes about .*, and 100B are available; free memory, or export"):
        make(write_bundle(tmp_path / "bundle", matmul()), library)
    assert left_in(cache) == []


# -- several processes -----------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A bundle that takes the builder long enough to be disturbed."""
    nodes = []
    for index in range(300):
        last = index == 299
        nodes.append(
            make_node(
                "Relu" if index % 2 else "Sin", [f"x{index}" if index else "x"], ["y" if last else f"x{index + 1}"]
            )
        )
    model = graph(nodes, [("x", HALF, ["sequence", 8])], [("y", HALF, ["sequence", 8])])
    return write_bundle(tmp_path / "slow", model).folder


def builder(cache: Path) -> list[int]:
    """The processes that build into a cache."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (path / "environ").read_bytes().decode(errors="replace")
            if (
                b"edgeglm.runtimes.engines.tensorrt.builder" in (path / "cmdline").read_bytes()
                and str(cache.parents[1]) in environment
            ):
                found.append(int(path.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def begin(bundle: Path, cache: Path) -> subprocess.Popen[str]:
    """A build, when its builder has begun."""
    process = start("build", bundle, "--sm", "86", "--json")
    wait_for(lambda: builder(cache))
    return process


def outcome(done: Done) -> bool:
    status, out, err = done
    assert (status, err) == (0, "")
    (module,) = json.loads(out)["modules"]
    return bool(module["fresh"])


def test_of_two_starts_at_once_one_builds_and_one_waits(slow: Path, cache: Path) -> None:
    both = [start("build", slow, "--sm", "86", "--json") for _ in range(2)]
    assert sorted(outcome(end(process)) for process in both) == [False, True]
    assert len(left_in(cache)) == 1


def test_a_kill_leaves_nothing_that_is_used_and_ends_the_builder(slow: Path, cache: Path) -> None:
    process = begin(slow, cache)
    process.kill()
    process.communicate()
    wait_for(lambda: not builder(cache))
    assert not any((folder / RECORD).exists() for folder in cache.iterdir() if folder.is_dir())
    assert outcome(end(start("build", slow, "--sm", "86", "--json")))
    assert len(left_in(cache)) == 1


def test_ctrl_c_ends_the_builder_and_leaves_nothing(slow: Path, cache: Path) -> None:
    process = begin(slow, cache)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "edgeglm: interrupted\n")
    assert builder(cache) == []
    assert left_in(cache) == []


def test_a_builder_that_is_killed_for_memory_is_one_line(slow: Path, cache: Path) -> None:
    process = begin(slow, cache)
    os.kill(builder(cache)[0], signal.SIGKILL)
    status, out, err = end(process)
    assert (status, out) == (BudgetError.exit_code, "")
    assert "the builder was killed, most likely because memory ran out; free memory, or" in err
    assert err.count("\n") == 1
    assert left_in(cache) == []
