"""The demo's vision module in TFLite for the QCS6490: LiteRT's compiler plug-in, and its program on the simulator."""

from __future__ import annotations

import json
import resource
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime_qnn", reason="pip install 'edgeglm[qnn]' brings the NPU's compiler and simulator")
from tests.extras import need_tflite

need_tflite()

from edgeglm.bundle import load_bundle, read_manifest, verify_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.errors import BudgetError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.export.targets.litert import plugin
from edgeglm.export.targets.litert.check import check
from edgeglm.export.targets.litert.plugin import compile_file, execute, read_program
from edgeglm.export.targets.qnn.compile import MIN_COSINE, cosine
from edgeglm.runtimes.core.sessions import open_encoder
from edgeglm.runtimes.engines.qnn import engine as qnn
from edgeglm.runtimes.inputs.image import to_patches
from tests.cli.captured import run_captured
from tests.cli.commands import check_failure, left_of, run
from tests.runtimes.demo import SCREEN, demo_bundle, taps_ok

Capture = pytest.CaptureFixture[str]
QCS6490 = (93, 68)
NPU = ("--target", "qcs6490", "--format", "vision=tflite")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The bundle, and what the command printed."""
    folder = tmp_path_factory.mktemp("npu") / "bundle"
    status, out, err = run_captured("export", *NPU, "-o", folder)
    assert (status, err) == (0, "")
    return folder, out


@pytest.fixture(scope="module")
def bundle(exported: tuple[Path, str]) -> Path:
    return exported[0]


@pytest.mark.slow
def test_the_whole_module_is_one_program_for_the_chip(bundle: Path) -> None:
    made = read_manifest(bundle)
    _, vision, decoder = made.modules
    assert (vision.format, vision.engine, vision.placement) == ("tflite", "litert", "npu")
    assert (decoder.format, decoder.engine, decoder.placement) == ("onnx", "ort", "cpu")
    assert vision.compiled
    assert (vision.file, vision.compiled.file) == ("vision/model.tflite", "vision/npu.tflite")
    assert vision.compiled.chip == "QCS6490, Hexagon v68"
    assert {"ai-edge-litert", "onnxruntime-qnn"} <= set(vision.compiled.by.split())
    program = read_program(bundle / vision.compiled.file)
    assert b"soc_type=QCS6490;arch=68" in program.code
    assert list(program.inputs.values()) == [vision.inputs[0].shape]
    verify_bundle(load_bundle(bundle))
    assert {vision.file, vision.compiled.file} <= set(made.files)


@pytest.mark.slow
def test_the_nearer_precision_is_taken_and_proven_on_the_simulator(bundle: Path) -> None:
    vision = read_manifest(bundle).modules[1]
    assert vision.tried.keys() == {"a8w8", "a16w8"}
    assert vision.precision == min(vision.tried, key=vision.tried.__getitem__) == "a16w8"
    assert vision.max_relative_error is not None
    assert 0 < vision.max_relative_error < 0.1 < vision.tried["a8w8"]
    assert vision.compiled
    assert vision.compiled.executed_on == "HTP simulator"
    assert vision.compiled.cosine is not None
    assert MIN_COSINE <= vision.compiled.cosine <= 1


@pytest.mark.slow
def test_the_program_computes_what_the_portable_file_says(bundle: Path) -> None:
    opened = load_bundle(bundle)
    module, described = opened.module("vision"), opened.manifest.model.vision
    assert module
    assert module.compiled
    assert described
    # None of the screens that it was calibrated or proven on.
    patches = to_patches(list(read_samples(DATA / "evaluation.jsonl", 7))[-1].image, described)
    (simulated,) = execute(read_program(bundle / module.compiled.file), QCS6490, [patches])
    encoder = open_encoder(opened, module, 2)
    want = encoder.run({"pixel_values": patches})["features"]
    encoder.close()
    assert cosine(simulated, want) > MIN_COSINE
    assert np.abs(simulated).max() > 0


@pytest.mark.slow
def test_compiling_again_elsewhere_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    model = tmp_path / "another place" / "name.tflite"
    model.parent.mkdir()
    model.write_bytes((bundle / "vision/model.tflite").read_bytes())
    compile_file(model, tmp_path / "npu.tflite", QCS6490)
    assert (tmp_path / "npu.tflite").read_bytes() == (bundle / "vision/npu.tflite").read_bytes()


@pytest.mark.slow
def test_what_is_printed_says_what_was_run_where(exported: tuple[Path, str], capsys: Capture) -> None:
    folder, out = exported
    assert "vision: compiled for QCS6490, Hexagon v68 by ai-edge-litert" in out
    assert "executed on its HTP simulator: cosine 0.99" in out
    assert " to LiteRT\n" in out
    assert out.partition("\n\n")[0] in run(capsys, "inspect", folder)[1]
    assert "to LiteRT on the same integers" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_runner_takes_the_portable_file_and_says_so(bundle: Path, capsys: Capture) -> None:
    status, out, _ = run(capsys, "run", bundle, "--json", "--prompt", "Select OK", "--image", SCREEN)
    assert status == 0
    found = json.loads(out)
    assert taps_ok(found["action"])
    vision, decoder = found["modules"]
    assert vision["engine"] == "litert"
    assert vision["note"].startswith("vision ran on the CPU: what is compiled for the NPU is for LiteRT")
    assert decoder["note"] is None


@pytest.mark.slow
def test_what_the_simulator_computes_otherwise_is_not_shipped(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    done = run_captured("export", *NPU, "--precision", "vision=a8w8", "-o", target)
    check_failure(done, 4, r"simulator computes it with a cosine of 0\.99\d\d to LiteRT's, below 0\.999; choose a16w8")
    assert not target.exists()


@pytest.mark.slow
def test_the_compiler_is_ended_with_its_bounds(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = bundle / "vision/model.tflite", tmp_path / "npu.tflite"
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "SECONDS", 0.1)
        with pytest.raises(UnsupportedError, match=r"was not done after 0\.1 s; leave vision=tflite out"):
            compile_file(model, compiled, QCS6490)
    with monkeypatch.context() as patch:  # a second of the processor's time, after which the kernel kills it
        patch.setattr(plugin, "at_fixed_addresses", lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1)))
        with pytest.raises(BudgetError, match="was killed, most likely because memory ran out; give it"):
            compile_file(model, compiled, QCS6490)


@pytest.mark.slow
def test_floats_are_refused_in_one_line(tmp_path: Path) -> None:
    floats = demo_bundle(tmp_path / "bundle", "cpu", "vision=fp32", "vision=tflite")
    module = read_manifest(floats).modules[1]
    assert module.max_relative_error is not None
    assert module.max_relative_error < 1e-5
    with pytest.raises(
        UnsupportedError, match=r"leaves \d+ MUL \(float32\), .* kinds more to the CPU; leave"
    ) as raised:
        compile_file(floats / module.file, tmp_path / "npu.tflite", QCS6490)
    assert "\n" not in str(raised.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with pytest.raises(UnsupportedError, match=r"cannot compile it: .*; leave vision=tflite out") as raised:
        compile_file(tmp_path / "model.tflite", tmp_path / "npu.tflite", QCS6490)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ("--precision vision=fp32", 3, r"the NPU of qcs6490 \(Hexagon v68\) computes integers, not fp32"),
        ("--precision vision=int4", 3, "compiles INT8 weights under calibrated integers"),
        ("--image-size 600x448", 3, "ranges are taken of the whole tower at once.*; leave vision=tflite out"),
    ],
)
def test_what_cannot_be_is_a_line(options: str, status: int, why: str, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "bundle"
    check_failure(run(capsys, "export", *NPU, *options.split(), "-o", target), status, why)
    assert left_of(target) == []


def test_a_chip_that_the_plugin_does_not_know_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"soc_model 30: ai-edge-litert [\d.]+ with .* has no such chip"):
        compile_file(tmp_path / "model.tflite", tmp_path / "npu.tflite", (30, 68))


def test_without_the_compiler_the_line_says_what_to_install(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        if name == qnn.DISTRIBUTION:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    version, target = metadata.version, tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", missing)
        done = run(capsys, "export", *NPU, "-o", target)
    check_failure(done, 3, r"onnxruntime-qnn: compiles for the NPU, and is not installed; pip install 'edgeglm\[qnn\]'")
    monkeypatch.setattr(plugin, "PLUGIN", "vendors/qualcomm/compiler/none.so")  # as in the wheels for other machines
    done = run(capsys, "export", *NPU, "-o", target)
    check_failure(done, 3, r"has no none\.so on this machine; export on x86-64 Linux, or leave vision=tflite out")
    assert left_of(target) == []


def test_a_model_of_ones_own_wants_samples() -> None:
    opened = open_export(Request(DEMO, "mine", load_profile("qcs6490"), format="vision=tflite"))
    with pytest.raises(UsageError, match=r"vision on its NPU.*give samples by --calibration FILE"):
        check(opened, [])
