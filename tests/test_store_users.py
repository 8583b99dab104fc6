"""Whoever keeps something between runs gets the same result whatever happened to the folder, or one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("ai_edge_litert", reason="needs pip install 'edgeglm[tflite]'")

from edgeglm import store
from edgeglm.export.trace import tracer
from edgeglm.export.trace.trace_request import TraceRequest
from tests.export.trace.test_tracer import configure
from tests.store_inputs import Inputs, write_inputs
from tests.store_users import NEEDING, NOBODY, USERS, Used, run, use

HERE = [name for name in USERS if name != "engines" or find_spec("tensorrt_rtx")]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the tracing process gives, answers included."""
    folder = tmp_path_factory.mktemp("traces")
    return tracer._run([TraceRequest(configure(folder / "model"), "portable", 64)])[0]


@pytest.fixture(scope="module")
def inputs(traces: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"), traces)


@pytest.fixture(scope="module")
def others(traces: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Inputs of which everything else is made."""
    return write_inputs(tmp_path_factory.mktemp("others"), traces, 2.0)


@pytest.fixture(scope="module")
def expected(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each user makes in an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("expected")))
        return {name: use(name, inputs).result for name in HERE}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache/edgeglm"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be as a new process."""
    monkeypatch.setattr(store, "_kept_here", {})
    monkeypatch.setattr(store, "_swept", set())


def check(name: str, used: Used, expected: dict[str, str]) -> None:
    """Check that it is the right result, or one line with a code where the folder is needed."""
    if used.code:
        assert name in NEEDING, used
        assert used.code in (3, 5), used
        assert any(remedy in used.result for remedy in ("XDG_CACHE_HOME", "free some", "ulimit -f")), used
        assert "\n" not in used.result
    else:
        assert used.result == expected[name]


# -- folders that take nothing ---------------------------------------------------------


def file_as_cache(cache: Path, patch: pytest.MonkeyPatch) -> None:
    cache.parent.write_text("a file")


def file_as_kinds(cache: Path, patch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    for kind in USERS:
        (cache / kind).write_text("a file")


def links_to_nothing(cache: Path, patch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    for kind in USERS:
        (cache / kind).symlink_to("nothing")


def unwritable(cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XDG_CACHE_HOME", "/proc/self/fdinfo")  # root's, too


def long_name(cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XDG_CACHE_HOME", f"/{'n' * 300}")


def no_home(cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XDG_CACHE_HOME", "relative")
    patch.setattr(os.path, "expanduser", lambda path: path)


def open_to_others(cache: Path, patch: pytest.MonkeyPatch) -> None:
    for kind in USERS:
        (cache / kind).mkdir(parents=True)
        (cache / kind).chmod(0o777)


@pytest.mark.parametrize(
    "spoil", [file_as_cache, file_as_kinds, links_to_nothing, unwritable, long_name, no_home, open_to_others]
)
@pytest.mark.parametrize("name", HERE)
def test_a_folder_that_takes_nothing(
    name: str,
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    inputs: Inputs,
    expected: dict[str, str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        spoil(cache, patch)
        used = use(name, inputs)
    check(name, used, expected)
    assert used.fresh
    assert (used.code != 0) == (name in NEEDING)


@pytest.mark.parametrize("name", HERE)
def test_a_relative_folder_is_the_home_s(
    name: str, inputs: Inputs, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for fresh in (True, False):
        assert use(name, inputs) == Used(expected[name], fresh)
        forget(monkeypatch)
    assert list((tmp_path / "home/.cache/edgeglm").iterdir())
    assert not list((tmp_path / "here").iterdir())


# -- entries that are not to be believed -----------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def replace_by_link(file: Path) -> None:
    copy = file.with_name("copy")
    file.rename(copy)
    file.symlink_to(copy)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    (file / "folder").mkdir(parents=True)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "longer": lambda file: os.truncate(file, file.stat().st_size + 1),
    "removed": lambda file: file.unlink(),
    "a link": replace_by_link,
    "a folder": replace_by_folder,
    "another user may write it": lambda file: file.chmod(0o602),
    "another user's": lambda file: os.chown(file, NOBODY, NOBODY),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", HERE)
def test_a_damaged_entry_is_made_again(
    name: str, damage: str, inputs: Inputs, expected: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "another user's" and os.geteuid():
        pytest.skip("only root can give a file away")
    use(name, inputs)
    for file in sorted(path for path in cache.rglob("*") if path.is_file()):
        DAMAGE[damage](file)
        forget(monkeypatch)
        assert use(name, inputs) == Used(expected[name], fresh=True), file.name
        forget(monkeypatch)
        assert use(name, inputs) == Used(expected[name], fresh=False), file.name


@pytest.mark.parametrize("name", HERE)
def test_an_entry_of_something_else_is_not_believed(
    name: str, inputs: Inputs, others: Inputs, expected: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(name, inputs)
    (right,) = cache.glob("*/*")
    right.rename(cache.parent / "right")
    use(name, others)
    (wrong,) = cache.glob("*/*")
    wrong.rename(right)
    forget(monkeypatch)
    assert use(name, inputs) == Used(expected[name], fresh=True)


# -- what happens to a process ---------------------------------------------------------


@pytest.fixture
def mounts() -> None:
    """Where a process can have mounts of its own."""
    if subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode:
        pytest.skip("nothing can be mounted here")


def test_a_kill_in_the_middle_leaves_nothing_that_is_believed(
    inputs: Inputs, expected: dict[str, str], cache: Path
) -> None:
    for name, (used,) in run("killed", inputs, *HERE).items():
        assert used.code == -9, (name, used)
    assert any(path.name.endswith(".partial") for path in cache.glob("*/*"))
    for name in HERE:
        assert use(name, inputs) == Used(expected[name], fresh=True)
    assert [path for path in cache.glob("*/*") if path.name.endswith(".partial")] == []


def test_two_processes_at_once_get_the_same(inputs: Inputs, expected: dict[str, str]) -> None:
    for name, both in run("nothing", inputs, *HERE, processes=2).items():
        assert [used.result for used in both] == [expected[name]] * 2
        if name in ("traces", "engines", "prepacked", "litert"):
            assert sorted(used.fresh for used in both) == [False, True], name


@pytest.mark.parametrize("full", ["by its size", "by a limit"])
def test_a_full_disk(
    full: str, inputs: Inputs, expected: dict[str, str], cache: Path, request: pytest.FixtureRequest
) -> None:
    before = ""
    if full == "by its size":
        request.getfixturevalue("mounts")
        cache.parent.mkdir()
        before = f"mount -t tmpfs -o size=8k none {cache.parent}; head -c 8192 /dev/zero > {cache.parent}/full"
    for name, (used,) in run("nothing" if before else "small files", inputs, *HERE, before=before).items():
        check(name, used, expected)
        assert used.fresh
        assert used.code == (5 if name in NEEDING else 0), used
    assert [path for path in cache.rglob("*") if path.name.endswith(".partial")] == []


def test_a_read_only_folder_is_read(inputs: Inputs, expected: dict[str, str], cache: Path, mounts: None) -> None:
    cache.mkdir(parents=True)
    before = f"mount --bind {cache.parent} {cache.parent}; mount -o remount,bind,ro {cache.parent}"
    for name, (used,) in run("nothing", inputs, *HERE, before=before).items():
        check(name, used, expected)
        assert used.fresh
        assert used.code == (3 if name in NEEDING else 0), used
    for name in HERE:
        use(name, inputs)
    for name, (used,) in run("nothing", inputs, *HERE, before=before).items():
        assert used == Used(expected[name], fresh=False), name


@pytest.mark.parametrize("condition", ["unprivileged", "homeless"])
def test_another_user(condition: str, inputs: Inputs, expected: dict[str, str], cache: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    places = [place for file in (sys.executable, np.__file__, __file__) for place in Path(file).resolve().parents]
    # What the others load while they work, another user may not be able to read.
    names = (
        HERE
        if all(place.stat().st_mode & 1 for place in places)
        else ["verified", "answers", "sensitivity", "prepacked", "states"]
    )
    for name in names:
        use(name, inputs)
    cache.chmod(0o700)
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        bundle = shutil.copytree(inputs.bundle, Path(folder) / "bundle")
        bundle.chmod(0o755)
        for name, (used,) in run(condition, Inputs(bundle, inputs.traces), *names).items():
            check(name, used, expected)
            assert used.fresh
            assert (used.code != 0) == (name in NEEDING)
