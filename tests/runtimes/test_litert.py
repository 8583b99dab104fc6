"""LiteRT beside ONNX Runtime on the same demo: the same numbers and words, a kept state, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.extras import need_tflite

need_tflite()

from edgeglm.bundle import load_bundle
from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.export.evaluate.answers import artifact_answers
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.runtimes.core.self_test import are_alike
from edgeglm.runtimes.core.session import DecoderSession
from edgeglm.runtimes.core.sessions import open_decoder
from edgeglm.runtimes.engines.litert import engine as litert
from edgeglm.runtimes.engines.litert.weights import open_packed
from edgeglm.runtimes.engines.ort import engine as ort
from tests.runtimes.demo import SCREEN, ask

THREADS = 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoder(exact_tflite: Path) -> Iterator[litert.Decoder]:
    session = _open(exact_tflite)
    assert isinstance(session, litert.Decoder)
    yield session
    session.close()


def _open(folder: Path, capacity: int = 1) -> DecoderSession:
    bundle = load_bundle(folder)
    module = bundle.module("decoder")
    assert module is not None
    return open_decoder(bundle, module, THREADS, capacity)


def _inputs(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings, and positions that differ by axis as those of a picture do."""
    random = np.random.default_rng(count)
    positions = np.arange(count)[None, None] // np.array([1, 2, 3])[:, None, None]
    return random.standard_normal((1, count, 256), np.float32), positions


def _close(got: NDArray[np.float32], want: NDArray[np.float32]) -> bool:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want)) < 1e-5


def test_answers_are_those_of_onnx_runtime(exact: Path, exact_tflite: Path) -> None:
    for index, sample in enumerate(read_samples(DATA / "evaluation.jsonl", 4)):
        screen = DATA / "evaluation" / f"{index:04d}.webp"
        here, there = (ask(folder, sample.prompt, screen) for folder in (exact_tflite, exact))
        assert there.action
        assert are_alike(there.action, here.action)  # the picture is encoded in INT8 here
        assert {module.engine for module in here.modules} == {"litert"}


def test_validation_runs_the_same_sessions(exact_tflite: Path) -> None:
    samples = list(read_samples(DATA / "evaluation.jsonl", 2))
    screens = [DATA / "evaluation" / f"{index:04d}.webp" for index in range(len(samples))]
    want = [ask(exact_tflite, sample.prompt, screen).text for sample, screen in zip(samples, screens, strict=True)]
    bundle = load_bundle(exact_tflite)
    assert [answer.text for answer in artifact_answers(bundle, samples)] == want


def test_int8_is_the_nearer_of_both_ways(exact_tflite: Path) -> None:
    bundle = load_bundle(exact_tflite)
    vision, decoder = bundle.module("vision"), bundle.module("decoder")
    assert vision is not None
    assert decoder is not None
    assert vision.tried.keys() == {"int8", "int8-static"}
    assert vision.tried[vision.precision] == min(vision.tried.values())
    assert vision.max_relative_error is not None
    assert 1e-4 < vision.max_relative_error < 0.1
    assert decoder.max_relative_error is not None
    assert decoder.max_relative_error < 1e-5
    assert (decoder.format, decoder.engine, decoder.dialect) == ("tflite", "litert", None)
    assert [tensor.name for tensor in decoder.inputs[:3]] == ["hidden", "position_ids", "start"]
    assert bundle.manifest.provenance.options["format"] == "tflite"
    assert "litert-torch" in bundle.manifest.provenance.versions


@pytest.mark.parametrize("steps", [(1, 1, 1), (5, 128, 3), (300, 1, 40)])
def test_logits_are_those_of_onnx_runtime_in_steps_of_any_length(
    decoder: litert.Decoder, exact: Path, steps: tuple[int, ...]
) -> None:
    hidden, positions = _inputs(sum(steps))
    other, start = _open(exact, sum(steps)), 0
    for count in steps:
        part = slice(start, start + count)
        start += count
        got, want = (session.step(hidden[:, part], positions[:, :, part]) for session in (decoder, other))
        assert _close(got, want)
    assert decoder.length == start
    other.close()


def test_what_is_forgotten_leaves_no_trace(decoder: litert.Decoder) -> None:
    hidden, positions = _inputs(150)
    want = decoder.step(hidden[:, :40], positions[:, :, :40])
    decoder.step(hidden[:, 40:], positions[:, :, 40:])
    decoder.truncate(30)
    assert decoder.length == 30
    assert _close(decoder.step(hidden[:, 30:40], positions[:, :, 30:40]), want)


def test_the_whole_context_can_be_used_and_no_more(decoder: litert.Decoder, exact: Path) -> None:
    longest = load_bundle(exact).manifest.model.max_positions
    hidden, positions = _inputs(longest)
    want = _open(exact, longest)
    for start in range(0, longest - 3, 256):
        part = slice(start, min(start + 256, longest - 3))
        expected = [each.step(hidden[:, part], positions[:, :, part]) for each in (decoder, want)]
    assert _close(*expected)
    assert decoder.length + decoder.chunk > longest  # a padded chunk has no room
    tail = slice(longest - 3, longest)
    assert _close(*(each.step(hidden[:, tail], positions[:, :, tail]) for each in (decoder, want)))
    with pytest.raises(BudgetError, match=f"has room for {longest}"):
        decoder.step(hidden[:, :1], positions[:, :, :1])
    with pytest.raises(BudgetError):
        decoder.reserve(longest + 1)
    want.close()


def test_the_state_is_what_it_says(decoder: litert.Decoder, exact: Path) -> None:
    longest = load_bundle(exact).manifest.model.max_positions
    other = _open(exact, longest)
    assert decoder.state_bytes == other.state_bytes > 0
    other.close()


def test_packed_weights_are_kept_and_made_again_when_damaged(exact_tflite: Path, cache: Path) -> None:
    hidden, positions = _inputs(20)
    bundle, wanted = load_bundle(exact_tflite), []
    for _ in range(2):
        session = _open(exact_tflite)
        wanted.append(session.step(hidden, positions))
        session.close()
    (weights,) = cache.glob("edgeglm/litert/*/weights.bin")
    made = weights.stat()
    open_packed(bundle, "decoder/model.tflite", THREADS).close()
    assert weights.stat() == made
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    os.utime(weights, ns=(made.st_atime_ns, made.st_mtime_ns + 1))
    session = _open(exact_tflite)
    wanted.append(session.step(hidden, positions))
    session.close()
    assert weights.stat().st_ino != made.st_ino
    assert [folder.name for folder in weights.parents[1].iterdir()] == [weights.parent.name]
    assert _close(wanted[0], wanted[1])
    assert _close(wanted[0], wanted[2])


def test_a_folder_that_cannot_be_written_is_done_without(exact_tflite: Path, cache: Path) -> None:
    cache.write_text("a file, where folders should be made")
    session = _open(exact_tflite)
    assert np.isfinite(session.step(*_inputs(3))).all()
    session.close()


def test_the_program_is_silent_about_its_engine(exact_tflite: Path) -> None:
    arguments = [str(exact_tflite / "run.pyz"), "--image", str(SCREEN), "--prompt", "Select OK", "--json"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout)["action"]["action"] == "Tap"


def test_what_is_not_there_or_must_not_be_is_a_line(
    exact_tflite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site/tflite_runtime").mkdir(parents=True)
    (tmp_path / "site/tflite_runtime/__init__.py").touch()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        with pytest.raises(UnsupportedError, match=r"tflite-runtime: .*garbage.*; pip uninstall tflite-runtime"):
            ask(exact_tflite, "Select OK")
    arguments = ["run", str(exact_tflite), "--prompt", "Hi"]
    program = f"""
import importlib.util
from edgeglm.cli.main import main
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "ai_edge_litert" else find(name)
raise SystemExit(main({arguments}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.strip().endswith("; pip install ai-edge-litert")
    assert done.stderr.count("\n") == 1


def test_a_session_of_onnx_runtime_stays_one(exact: Path) -> None:
    session = _open(exact)
    assert isinstance(session, ort.Decoder)
    session.close()


def test_what_the_quantizer_calls_broken_is_an_error(exact_tflite: Path, tmp_path: Path) -> None:
    """FP16, whose data it writes twice where two signatures share a weight."""
    program = f"""
from pathlib import Path
import edgeglm.export.targets.litert.convert_worker  # as the converting process imports what it takes
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from edgeglm.export.targets.litert import converter as tflite

half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
config = qtyping.OpQuantizationConfig(
    weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
)
product = tflite.Operation.FULLY_CONNECTED
tflite.RECIPES["fp16"] = lambda recipe: recipe.add_quantization_config(
    ".*", product, config, AlgorithmName.FLOAT_CASTING
)
tflite.quantize(Path({str(exact_tflite / "decoder/model.tflite")!r}), "fp16", Path({str(tmp_path / "half")!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BrokenModelError: Quantized data" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "half").exists()
