"""``edgeglm export`` where it cannot: one line with the reason, the exit code, and no bundle."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np

from edgeglm.bundle import read_manifest
from tests.cli.commands import check_failure, end, left_of, run, start
from tests.cli.damage import DAMAGE, MATRIX, NORM, edit, put
from tests.export.tiny import SHAPES, save

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(SHAPES["glm4"], folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ("--target jetson-orinn", 2, "jetson-orinn: is not a device profile; did you mean jetson-orin?"),
        ("--target jetson-xavier", 3, "jetson-xavier: decoder: its GPU takes no attention of varying length"),
        ("--precision banana", 2, "'banana'.*choose one of a16w8, a8w8, fp16, fp32, int4, int4-128, int8"),
        ("--precision decoder=banana", 2, "'banana'.*choose one of a16w8, a8w8, fp16, fp32, int4, int4-128, int8"),
        ("--precision decodr=int4", 2, "'decodr' is not a module; did you mean decoder"),
        ("--precision int4,decodr.layer.0=int8", 2, "'decodr' is not a module; did you mean decoder"),
        ("--precision int4,decoder.layer.9=int8", 2, "decoder has no such part; did you mean layer"),
        (
            "--precision int4,decoder.layer.0=banana",
            2,
            "'banana'.*choose one of a16w8, a8w8, fp16, fp32, int4, int4-128, int8",
        ),
        ("--precision embedding.back=int8", 2, "embedding has no such part; write embedding=int8"),
        ("--precision vision.layer.0=fp16", 2, "the model has no vision module; leave vision out"),
        ("--precision decoder=int4,decoder=int8", 2, "is empty or repeated"),
        ("--precision embedding=int4", 2, "no 'int4' form; choose one of fp32, fp16, int8"),
        ("--precision vision=fp16", 2, "the model has no vision module; leave vision out"),
        ("--image-size 10", 2, "--image-size 10: is not a size in pixels; write WIDTHxHEIGHT"),
        ("--image-size 0x0", 2, "--image-size 0x0: is not a size in pixels; write WIDTHxHEIGHT"),
        ("--image-size 504x1008", 2, "--image-size: the model takes no images"),
        ("--context 0", 2, "'--context': 0 is not in the range"),
        ("--context 10000000", 3, "--context 10000000: the model has 512 positions; give at most 512"),
        (
            "--accuracy-drop 2%",
            2,
            "nothing to measure .*tiny on; give samples with targets, or a text, by --calibration FILE",
        ),
        ("--accuracy-drop 200%", 2, "--accuracy-drop 200%: is more than 100%"),
        ("--max-ram banana", 2, "--max-ram banana: is not a size; write 2GiB"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: str, status: int, why: str, tiny: Path, target: Path, capsys: Capture
) -> None:
    check_failure(run(capsys, "export", tiny, "--target", "cpu", "-o", target, *options.split()), status, why)
    assert left_of(target) == []


def test_a_picture_beyond_the_context_is_one_line(target: Path, capsys: Capture) -> None:
    done = run(capsys, "export", "--target", "cpu", "-o", target, "--image-size", "90000x90000")
    check_failure(done, 3, r"--image-size 90000x90000: takes \d+ tokens, and a conversation has 8192")
    assert left_of(target) == []


def test_a_name_that_the_hub_does_not_give_is_one_line(target: Path) -> None:
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = end(start("export", "no-such/model", "--target", "cpu", "-o", target, env=offline))
    check_failure(done, 2, "no-such/model: is no folder, and Hugging Face does not give it")
    assert left_of(target) == []


@pytest.mark.parametrize(("damage", "status", "why"), DAMAGE.values(), ids=DAMAGE)
def test_a_checkpoint_that_cannot_be_used_is_one_line(
    damage: Callable[[Path], object], status: int, why: str, copy: Path, target: Path, capsys: Capture
) -> None:
    damage(copy)
    check_failure(run(capsys, "export", copy, "--target", "cpu", "-o", target), status, why)
    assert left_of(target) == []


@pytest.mark.parametrize(
    ("damage", "options", "status", "why"),
    [
        (put(MATRIX, np.nan), "--target cpu", 6, f"{MATRIX}: the weight holds NaN or infinity"),
        (put(NORM, np.nan), "--target cpu", 6, f"{NORM}: the weight holds NaN or infinity"),
        (put(MATRIX, 1e6), "--target cpu --precision fp16", 3, f"{MATRIX}: .* more than float16 can .*another prec"),
        (put(NORM, 1e6), "--target jetson", 3, f"{NORM}: .* more than float16 can .*; export it in another prec"),
        (put(NORM, 3e38), "--target cpu", 6, "copy: computes NaN or infinity in its decoder"),
        (edit(lambda each: each[NORM].fill(6e4)), "--target jetson", 4, "in fp16, where the original does not"),
    ],
)
def test_what_only_the_weights_show_is_one_line_without_a_bundle(
    damage: Callable[[Path], object], options: str, status: int, why: str, copy: Path, target: Path, capsys: Capture
) -> None:
    damage(copy)
    check_failure(run(capsys, "export", copy, "-o", target, *options.split()), status, why)
    # Weights before it are done, and stay for the next run.
    assert left_of(target) in ([], ["bundle.partial"])


def test_an_output_that_is_something_else_is_left_alone(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for output, why in {
        "out": r"/out: exists and is not a bundle; give a new folder",
        "out/thesis.txt": r"/out/thesis\.txt: is a file; give a folder",
        "out/thesis.txt/below": r"/out/thesis\.txt/below: cannot be written: .*; give a folder",
    }.items():
        check_failure(run(capsys, "export", tiny, "--target", "cpu", "-o", tmp_path / output), 2, why)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_too_small_a_budget_names_the_one_that_would_do(tiny: Path, target: Path, capsys: Capture) -> None:
    export = ["export", tiny, "--target", "cpu", "-o", target]
    assert run(capsys, *export)[0] == 0  # from here on, its blocks are traced
    done = run(capsys, *export, "--max-ram", "50MB")
    check_failure(done, 5, r"--max-ram: 47\.68MiB is too little for tiny; it takes at least \d+MiB")
    smallest = re.findall(r"\d+MiB", done[2])[-1]
    # A process of its own: the peak of this one includes torch.
    status, _, err = end(start(*export, "--max-ram", smallest))
    assert status == 0
    assert "budget" not in err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "edgeglm-test", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_names_the_need(tiny: Path, small_disk: Path, capsys: Capture) -> None:
    target = small_disk / "bundle"
    done = run(capsys, "export", tiny, "--target", "cpu", "--precision", "fp32", "-o", target)
    why = r"/bundle/decoder/weights\.bin: needs 1\.\d+MiB where .* is free: No space left on device; free some"
    check_failure(done, 5, why)
    assert os.listdir(small_disk) == []


def test_the_line_of_an_error_stands_alone_on_a_terminal(copy: Path, target: Path) -> None:
    put(MATRIX, np.nan)(copy)
    terminal, theirs = pty.openpty()
    status, out, _ = end(start("export", copy, "--target", "cpu", "-o", target, stderr=theirs))
    os.close(theirs)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert (status, out) == (6, "")
    assert "tracing copy for cpu" in shown
    assert shown.rpartition("\x1b[2K")[2].startswith(f"edgeglm: {copy}/model.safetensors: model.layers.1.")


ODD = b"odd\n\xff\xe2\x80\xae"  # a new line, a byte that is no UTF-8, a character that turns text around


def test_a_model_may_lie_in_a_folder_of_any_name(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / os.fsdecode(ODD)))
    status, out, err = run(capsys, "plan", folder, "--target", "cpu")
    assert (status, out.splitlines()[0], err) == (0, "odd??? on cpu: fits at 512 tokens", "")
    status, _, err = run(capsys, "export", folder, "--target", "cpu", "--precision", "fp32", "-o", tmp_path / "bundle")
    assert status == 0, err
    assert all(line.startswith("note: ") and line.isprintable() for line in err.removesuffix("\n").split("\n")), err
    assert read_manifest(tmp_path / "bundle").model.name == "odd???"


def test_a_bundle_where_engines_open_nothing_is_refused_before_work(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / os.fsdecode(b"odd\xff")
    check_failure(run(capsys, "export", tiny, "--target", "cpu", "-o", target), 2, "a path that is not UTF-8")
    assert os.listdir(tmp_path) == []
