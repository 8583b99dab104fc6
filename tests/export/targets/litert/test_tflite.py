"""Export to TFLite: blocks as transformers has them, in one file or several, and what is refused in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.extras import need_tflite

need_tflite()

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.export.targets.litert import sizes as tflite_sizes
from edgeglm.runtimes.core.embedding import EmbeddingRows
from edgeglm.runtimes.core.sessions import open_decoder
from tests.cli.commands import check_failure, end, left_of, run, start
from tests.export.tiny import SHAPES, build, save

Capture = pytest.CaptureFixture[str]
TFLITE = ("--target", "cpu", "--format", "tflite")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "text"
    save(SHAPES["glm"], folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


def interrupted(target: Path, text: Path, act: Callable[[subprocess.Popen[str], int], object]) -> subprocess.Popen[str]:
    """An export during whose conversion something happens."""
    process = start("export", text, *TFLITE, "--precision", "fp32", "-o", target)
    deadline = time.monotonic() + 120
    while not (found := converters_of(process.pid)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found
    act(process, found[0])
    return process


def converters_of(pid: int) -> list[int]:
    """The converting processes that an export has started."""
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        return [child for child in children if b"convert_worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return []


def until_gone(pid: int) -> None:
    """Wait for the kernel, which ends a child with its parent, and for who buries it."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupted_export_is_finished_to_what_transformers_computes(
    text: Path, target: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[int] = []

    def interrupt(process: subprocess.Popen[str], child: int) -> None:
        children.append(child)
        process.send_signal(signal.SIGINT)

    assert end(interrupted(target, text, interrupt)) == (130, "", "edgeglm: interrupted\n")
    until_gone(children[0])
    assert left_of(target) == ["bundle.partial"]
    monkeypatch.setattr(tflite_sizes, "FILE_BYTES", 700_000)  # of its three blocks, two
    assert run(capsys, "export", text, *TFLITE, "--precision", "fp32", "-o", target)[0] == 0
    bundle = load_bundle(target)
    verify_bundle(bundle)
    names = [name for name in bundle.manifest.files if name.startswith("decoder/")]
    assert names == ["decoder/model-000.tflite", "decoder/model-001.tflite"]
    assert all(not os.access(target / name, os.X_OK) for name in names)
    # A file or class of ours that is renamed leaves the bytes of bundles as they are.
    contents = [(target / name).read_bytes() for name in names]
    assert not any(name in content for name in (b"edgeglm", b"DecoderSpan", b"torch.nn") for content in contents)
    assert all(b"blocks.0.layer.mlp" in content for content in contents)
    module = bundle.module("decoder")
    assert module is not None
    assert (module.format, module.engine, module.dialect, module.file) == ("tflite", "litert", None, names[0])
    assert module.max_relative_error is not None
    assert module.max_relative_error < 1e-5
    assert {tensor.name for tensor in module.inputs} >= {"hidden", "position_ids", "key_0", "value_2"}
    tokens = np.random.default_rng(0).integers(0, 256, 200).tolist()
    session, rows = open_decoder(bundle, module, 2, 200), EmbeddingRows(bundle)
    with torch.no_grad():
        want = build(SHAPES["glm"])(torch.tensor([tokens])).logits[0].numpy()
    for start_, stop in ((0, 150), (150, 151), (151, 200)):
        got = session.step(rows.gather(tokens[start_:stop])[None], np.arange(start_, stop)[None, None])
        assert np.linalg.norm(got - want[stop - 1]) / np.linalg.norm(want[stop - 1]) < 1e-5
    session.close()


def test_a_killed_converter_is_a_line(text: Path, target: Path) -> None:
    process = interrupted(target, text, lambda _, child: os.kill(child, signal.SIGKILL))
    check_failure(
        end(process), 5, "decoder: converting to TFLite: the converter was killed, most likely because memory"
    )


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ("--format tflit", 2, "'tflit' is no format; did you mean tflite?"),
        ("--format vison=tflite", 2, "'vison' is no module with a graph"),
        ("--format embedding=tflite", 2, "'embedding' is no module with a graph"),
        ("--format tflite,onnx", 2, "says something twice"),
        ("--format tflite --target jetson", 3, "jetson-orin has no LiteRT among its engines"),
        ("--format tflite --precision fp16", 3, "would widen them to fp32; choose one of fp32, int8, int4"),
        ("--format tflite --precision int8-block", 3, "choose one of fp32, int8, int4"),
        ("--format tflite --precision decoder=int4,decoder.layer.0=int8", 3, "has one precision"),
        ("--format tflite --precision int4", 3, "vision=int4: .*blocks of 32.*rows of 1176; choose vision=int8"),
        ("--format tflite --max-ram 700MB", 5, "it takes at least"),
    ],
)
def test_what_cannot_be_is_a_line(capsys: Capture, target: Path, options: str, status: int, why: str) -> None:
    targeted = [] if "--target" in options else ["--target", "cpu"]
    check_failure(run(capsys, "export", *targeted, *options.split(), "-o", target), status, why)
    assert left_of(target) == []


def test_without_the_converter_the_line_says_what_to_install(
    capsys: Capture, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeglm.export.choose.formats.importlib.util.find_spec", lambda _: None)
    check_failure(run(capsys, "export", *TFLITE, "-o", target), 3, r"pip install 'edgeglm\[tflite\]'")
