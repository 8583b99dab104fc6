"""Calibration: what the original's channels carry is what transformers' carry, and INT4 weighs its errors by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import onnx_ir as ir

from edgeglm import manifest
from edgeglm.bundle import read_manifest
from edgeglm.devices.loader import load_profile
from edgeglm.engines import Dialect
from edgeglm.export import api
from edgeglm.export.calibrate import calibrator
from edgeglm.export.calibrate.calibrator import (
    ANSWERED,
    HELD_OUT,
    MANY,
    SAMPLES,
    calibrate,
    examples_hash,
    read_calibration,
)
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.demo.samples import write_samples
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.quantize.feedback import Inputs
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.quantize.schemes import Int4, Int8, Scheme
from edgeglm.export.quantize.storage import dequantize, encode
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from tests.cli.commands import check_failure, left_of, run
from tests.export.tiny import SHAPES, save

SET = DATA / "calibration.jsonl"
Capture = pytest.CaptureFixture[str]
# Enough to export the demo, but not with samples.
BUDGET = 256 << 20


def test_energies_are_those_of_transformers() -> None:
    """Each token's relative to its own size, so that none rules; those of answers count more."""
    samples = list(read_samples(SET, 2))
    found = calibrate(prepare(open_export(Request(DEMO, "demo", load_profile("cpu"), "int4"))), samples)
    agent = WholeOriginal.load(DEMO)
    sums: dict[str, list[Any]] = {}

    def watch(name: str, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1]).numpy()
        counts = 1 / np.square(tokens).mean(1, keepdims=True)
        if name.startswith("model.language_model"):
            counts[-answer.shape[1] :] *= ANSWERED
        sums.setdefault(name, []).append(np.square(tokens) * counts)

    for name, module in agent.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs))
    for sample in samples:
        inputs = agent.encode([sample.image], [sample.messages])
        answer = agent.tokenizer(sample.expected.response, return_tensors="pt", add_special_tokens=False).input_ids
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[key] = torch.cat([inputs[key], torch.full_like(answer, value)], 1)
        with torch.no_grad():
            agent.model(**inputs)
    checked = 0
    for name, tokens in sums.items():
        if f"{name}.weight" in found.inputs and name != "lm_head":  # of whose tokens only the answers' count
            want = np.concatenate(tokens).mean(0)
            known = found.inputs[f"{name}.weight"]
            energy = known.energy if known.factor is None else known.energy * np.square(known.factor)
            assert energy == pytest.approx(want, rel=1e-3, abs=1e-6), name
            checked += 1
    assert checked >= 4 * 6 + 4 * 5  # all of both stacks' blocks
    assert found.sha256 == examples_hash(samples) != examples_hash(samples[:1])


def weighed_error(scheme: Scheme, dialect: Dialect, weight: Floats, energy: Floats, by: Floats | None) -> float:
    stored = encode(scheme, dialect, weight, ir.DataType.FLOAT, None if by is None else Inputs(by))
    return float((np.square(dequantize(scheme, dialect, stored, weight.shape[1]) - weight) * energy).sum())


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_errors_count_by_the_energy_of_their_column(dialect: Dialect) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, 300)).astype(np.float32)
    loud = np.ones(300, np.float32)
    loud[random.permutation(300)[:30]] = 1000
    plain, weighed = (weighed_error(Int4(), dialect, weight, loud, by) for by in (None, loud))
    assert weighed < 0.92 * plain
    even = np.full(300, 3.0, np.float32)
    plain, weighed = (weighed_error(Int4(), dialect, weight, even, by) for by in (None, even))
    assert weighed == pytest.approx(plain, rel=1e-3)
    assert weighed_error(Int8(), dialect, weight, loud, loud) == weighed_error(Int8(), dialect, weight, loud, None)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_the_bytes_do_not_depend_on_the_chunks(dialect: Dialect) -> None:
    random = np.random.default_rng(1)
    weight = random.standard_normal((130, 1100)).astype(np.float32)
    energy = random.gamma(0.3, 1.0, 1100).astype(np.float32)
    axis = 0 if dialect == "ort" else 1
    whole = encode(Int4(), dialect, weight, inputs=Inputs(energy))
    pieces = [encode(Int4(), dialect, weight[start : start + 26], inputs=Inputs(energy)) for start in range(0, 130, 26)]
    for index, array in enumerate(whole):
        assert np.array_equal(array, np.concatenate([piece[index] for piece in pieces], axis))


def test_channels_that_were_never_seen_still_count() -> None:
    weight = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    for energy in (np.zeros(64, np.float32), np.eye(1, 64, dtype=np.float32)[0]):
        stored = encode(Int4(), "ort", weight, inputs=Inputs(energy))
        error = np.square(dequantize(Int4(), "ort", stored, 64) - weight).sum() / np.square(weight).sum()
        assert error < 0.03


@dataclass(frozen=True)
class Exported:
    """A bundle, and the peak that was predicted of its export."""

    folder: Path
    peak: int


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, set_of_four: Path) -> Exported:
    """The demo in INT4, calibrated."""
    folder = tmp_path_factory.mktemp("calibrated") / "bundle"
    request = api.ExportRequest(target="cpu", precision="int4", calibration=set_of_four, output=folder)
    return Exported(folder, api.export(request).predicted_peak_rss_bytes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same without samples, within the budget."""
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    request = api.ExportRequest(target="cpu", precision="int4", output=folder, max_ram=BUDGET)
    return Exported(folder, api.export(request).predicted_peak_rss_bytes)


def test_a_calibrated_bundle_says_so(plain: Exported, calibrated: Exported) -> None:
    made: list[manifest.Manifest] = [read_manifest(exported.folder) for exported in (plain, calibrated)]
    assert made[0].provenance.calibration_sha256 is None
    assert made[1].provenance.calibration_sha256 is not None
    sizes = [[each.module_bytes(module) for module in each.modules] for each in made]
    assert sizes[0] == sizes[1]
    assert made[0].provenance.weights_sha256 == made[1].provenance.weights_sha256
    for file in ("vision/weights.bin", "decoder/weights.bin"):
        assert made[0].files[file] != made[1].files[file]


@pytest.fixture(scope="module")
def set_of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), lines(4))


def test_static_int8_is_proven_like_every_precision(tmp_path: Path, set_of_four: Path, capsys: Capture) -> None:
    mixed = "vision=int8-static,decoder=int8-static,decoder.layer.1=int8,decoder.back=fp16"
    common = ["export", "--target", "cpu", "--precision", mixed, "-o", tmp_path / "bundle", "--json"]
    check_failure(run(capsys, *common), 2, "takes ranges of activations; give samples by --calibration FILE")
    status, out, _ = run(capsys, *common, "--calibration", set_of_four)
    assert status == 0
    modules = json.loads(out)["modules"]
    assert [module["precision"] for module in modules] == ["fp16", "int8-static", "mixed"]
    assert all(0.01 < module["max_relative_error"] < 0.5 for module in modules[1:])
    common[2] = "jetson"
    done = run(capsys, *common, "--calibration", set_of_four)
    check_failure(done, 3, "int8-static is made for the CPU, and jetson-orin has vision elsewhere; choose int8")


def test_samples_count_in_the_budget(
    tmp_path: Path, set_of_four: Path, plain: Exported, calibrated: Exported, capsys: Capture
) -> None:
    assert calibrated.peak > plain.peak + (64 << 20)
    options = ["--target", "cpu", "--precision", "int4", "--calibration", set_of_four, "--max-ram", BUDGET]
    check_failure(run(capsys, "export", *options, "-o", tmp_path / "bundle"), 5, "it takes at")
    assert left_of(tmp_path / "bundle") == []


def lines(count: int) -> list[str]:
    return SET.read_text().splitlines()[:count]


def write_set(folder: Path, written: list[str]) -> Path:
    """A set in a folder with the pictures of the first four samples."""
    (folder / "calibration").mkdir()
    for number in range(4):
        picture = f"calibration/{number:04d}.webp"
        (folder / picture).write_bytes((DATA / picture).read_bytes())
    file = folder / "set.jsonl"
    file.write_text("\n".join(written))
    return file


def without_picture(line: str) -> str:
    record = json.loads(line)
    record["messages"][0]["content"].pop(0)
    return json.dumps(record)


def with_nan(line: str) -> str:
    return json.dumps(json.loads(line) | {"box": [float("nan"), 0, 1, 1]})


BAD: dict[str, tuple[Callable[[], list[str]], str]] = {
    "empty": (lambda: [], "holds no samples"),
    "too small": (lambda: lines(3), "holds 3 samples; calibrate with 4 or more"),
    "of another shape": (
        lambda: [*map(without_picture, lines(4))],
        "1: .* its last message is not the user",
    ),
    "with NaN": (lambda: [*lines(4), with_nan(lines(1)[0])], "5: is not a sample: JSON is malformed"),
    "not JSON": (lambda: ["{"], "1: is not a sample"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_set_is_one_line(name: str, tmp_path: Path, capsys: Capture) -> None:
    make, why = BAD[name]
    file = write_set(tmp_path, make())
    done = run(capsys, "export", "--target", "cpu", "-o", tmp_path / "bundle", "--calibration", file)
    check_failure(done, 2, why)
    assert left_of(tmp_path / "bundle") == []


def test_a_model_without_eyes_is_refused(tmp_path: Path, capsys: Capture) -> None:
    save(SHAPES["glm4"], tmp_path / "blind")
    capsys.readouterr()  # transformers may show its progress
    done = run(capsys, "export", tmp_path / "blind", "--target", "cpu", "-o", tmp_path / "b", "--calibration", SET)
    check_failure(done, 3, "--calibration: blind takes no images; give a text")


def test_a_set_is_read_no_further_than_it_is_used() -> None:
    samples, held_out = read_calibration(SET, DEMO)
    assert [*samples, *held_out] == list(read_samples(SET, MANY + HELD_OUT))
    assert len(samples) == MANY


def test_of_large_screens_fewer_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrator, "PIXELS", 40 * 336 * 672)
    assert [len(part) for part in read_calibration(SET, DEMO)] == [40, HELD_OUT]
    monkeypatch.setattr(calibrator, "PIXELS", 336 * 672)
    assert [len(part) for part in read_calibration(SET, DEMO)] == [SAMPLES, HELD_OUT]


def test_of_a_small_set_the_last_samples_are_the_self_test(tmp_path: Path) -> None:
    samples, held_out = read_calibration(write_samples("small", 5, tmp_path), DEMO)
    assert len(samples) == 5
    assert held_out == samples[1:]
