"""Exports that go on from a partial bundle, while the weights are exchanged, copied or changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.devices.loader import load_profile
from edgeglm.errors import DamagedFileError
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare import identity as weights
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.write.reuse import Reuse
from tests.export.pack_crash import contents
from tests.export.tiny import SHAPES, save

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save(SHAPES["glm-tied-one-head"], folder)
    return folder


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def make(
    model: Path, out: Path, meanwhile: Callable[[], object] = lambda: None, reuse: Reuse | None = None
) -> tuple[dict[str, bytes], str]:
    """Export, with something that happens once a few jobs are done; the bundle's files, and what is noted."""
    prepared = prepare(open_export(Request(model, "tiny", load_profile("cpu"), "int8")))
    reports: list[object] = []

    def report(progress: object) -> None:
        reports.append(progress)
        if len(reports) == 5:
            meanwhile()

    _, notes = export(prepared, out, predict(prepared), report, reuse=reuse)
    return contents(out), " ".join(notes)


def interrupt() -> None:
    raise KeyboardInterrupt


def stopped(model: Path, out: Path) -> None:
    with suppress(KeyboardInterrupt):
        make(model, out, interrupt)
    assert out.with_name(f"{out.name}.partial").exists()


def exchange(file: Path) -> None:
    """Other weights under the same name, size and time."""
    status, data = file.stat(), bytearray(file.read_bytes())
    for place in range(len(data) // 2, len(data), 4):
        data[place] ^= 1
    with file.open("r+b") as opened:  # a shorter file in between would be another fault
        opened.write(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_a_copy(file: Path) -> None:
    shutil.copyfile(file, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def test_weights_that_were_exchanged_under_their_size_and_time_are_not_mixed(model: Path, tmp_path: Path) -> None:
    stopped(model, tmp_path / "b")
    exchange(model / WEIGHTS)
    made, note = make(model, tmp_path / "b")
    assert "the partial bundle is of other weights" in note
    assert made == make(model, tmp_path / "clean")[0]


def test_a_copy_of_the_weights_is_gone_on_with(model: Path, tmp_path: Path) -> None:
    stopped(model, tmp_path / "b")
    replace_by_a_copy(model / WEIGHTS)
    made, note = make(model, tmp_path / "b")
    assert "resuming a partial bundle" in note
    assert made == make(model, tmp_path / "clean")[0]


def test_weights_that_nothing_touched_are_not_read_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SETTLED_NS", 0)
    stopped(model, tmp_path / "b")
    monkeypatch.setattr("edgeglm.export.pipeline.export.is_source_of", lambda *_: pytest.fail("read again"))
    assert "resuming" in make(model, tmp_path / "b")[1]


def test_weights_that_just_changed_are_read_again(model: Path, tmp_path: Path) -> None:
    """Within a tick of the file system's clock another change would not show."""
    checkpoint = open_export(Request(model, "tiny", load_profile("cpu"))).checkpoint
    (model / WEIGHTS).touch()
    assert weights.identify(checkpoint) != weights.identify(checkpoint)


def test_weights_that_change_while_they_are_exported_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"model\.safetensors: changes while it is exported"):
        make(model, tmp_path / "b", lambda: exchange(model / WEIGHTS))
    assert not (tmp_path / "b").exists()
    made, note = make(model, tmp_path / "b")
    assert "other weights" in note
    assert made == make(model, tmp_path / "clean")[0]


def test_weights_whose_file_is_touched_meanwhile_are_exported(model: Path, tmp_path: Path) -> None:
    made, _ = make(model, tmp_path / "b", lambda: replace_by_a_copy(model / WEIGHTS))
    assert made == make(model, tmp_path / "clean")[0]


def test_what_an_earlier_bundle_has_is_copied_only_as_it_was_written(model: Path, tmp_path: Path) -> None:
    reuse = Reuse()
    expected, _ = make(model, tmp_path / "first", reuse=reuse)
    assert make(model, tmp_path / "copied", reuse=reuse)[0] == expected
    for file in ("first/decoder/weights.bin", "copied/decoder/weights.bin"):
        data = bytearray((tmp_path / file).read_bytes())
        data[100] ^= 1
        (tmp_path / file).write_bytes(data)
    assert make(model, tmp_path / "second", reuse=reuse)[0] == expected
    exchange(model / WEIGHTS)
    assert make(model, tmp_path / "third", reuse=reuse)[0] == make(model, tmp_path / "clean")[0] != expected
