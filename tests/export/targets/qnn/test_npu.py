"""The demo for the QCS6490: its vision module compiled by Qualcomm's compiler and run on Qualcomm's simulator."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime_qnn", reason="pip install 'edgeglm[qnn]' brings the NPU's compiler and simulator")

from edgeglm.bundle import load_bundle, read_manifest, verify_bundle
from edgeglm.devices.loader import PROFILES, load_profile
from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.targets.qnn import compiler as emitter
from edgeglm.export.targets.qnn.calibrate import npu_samples
from edgeglm.export.targets.qnn.compile import MIN_COSINE
from edgeglm.export.targets.qnn.compiler import compile_file
from edgeglm.runtimes.engines.qnn import engine as qnn
from edgeglm.runtimes.engines.qnn.engine import Encoder, find_npu
from tests.cli.captured import run_captured
from tests.cli.commands import ROOT, check_failure, left_of, run
from tests.runtimes.demo import SCREEN, taps_ok

Capture = pytest.CaptureFixture[str]
QCS6490 = (93, 68)
PROMPT = "Select OK"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The bundle, and what the command printed."""
    folder = tmp_path_factory.mktemp("npu") / "bundle"
    status, out, err = run_captured("export", "--target", "qcs6490", "-o", folder)
    assert status == 0, err
    return folder, out, err


@pytest.fixture(scope="module")
def bundle(exported: tuple[Path, str, str]) -> Path:
    return exported[0]


@pytest.mark.slow
def test_vision_is_compiled_for_the_chip_and_computes_there_what_its_integers_say(bundle: Path) -> None:
    made = read_manifest(bundle)
    _, vision, decoder = made.modules
    assert (vision.placement, vision.engine, vision.dialect) == ("npu", "qnn", "qdq")
    assert (decoder.placement, decoder.engine, decoder.precision) == ("cpu", "ort", "int8")
    assert vision.compiled
    assert vision.compiled.chip == "QCS6490, Hexagon v68"
    assert b"soc_type=QCS6490;arch=68" in (bundle / vision.compiled.file).read_bytes()
    assert vision.compiled.executed_on == "HTP simulator"
    assert vision.compiled.cosine is not None
    assert MIN_COSINE <= vision.compiled.cosine <= 1
    assert made.provenance.calibration_sha256
    verify_bundle(load_bundle(bundle))
    assert {vision.file, vision.compiled.file} <= set(made.files)


@pytest.mark.slow
def test_the_bits_are_those_of_the_least_measured_error(bundle: Path) -> None:
    vision = read_manifest(bundle).modules[1]
    assert vision.compiled
    errors = vision.compiled.candidates
    assert sorted(errors) == ["a16w8", "a8w8"]
    assert vision.precision == min(errors, key=lambda name: errors[name]) == "a16w8"
    assert vision.max_relative_error is not None
    assert 0 < vision.max_relative_error < 0.03 < errors["a8w8"]


@pytest.mark.slow
def test_what_is_printed_is_ours(exported: tuple[Path, str, str], capsys: Capture) -> None:
    folder, out, err = exported
    assert err == ""
    assert "vision: compiled for QCS6490, Hexagon v68 by onnxruntime-qnn" in out
    assert out.partition("\n\n")[0] in run(capsys, "inspect", folder)[1]
    assert "executed on the HTP simulator" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_plan_has_a_guess_at_what_the_compiler_makes(bundle: Path, capsys: Capture) -> None:
    said = json.loads(run(capsys, "plan", "--target", "qcs6490", "--json")[1])
    made = read_manifest(bundle)
    assert said["bundle_bytes"] == pytest.approx(made.bundle_bytes - made.files["report.html"].bytes, rel=0.05)


def answer(bundle: Path) -> tuple[dict[str, Any], str]:
    """One answer of the runner in a process of its own, and what it wrote on stderr."""
    command = [sys.executable, "-m", "edgeglm.runtimes", str(bundle), "--json", "--prompt", PROMPT, "--image", SCREEN]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found, done.stderr


@pytest.mark.slow
def test_the_runner_takes_the_simulator_and_says_so(bundle: Path) -> None:
    found, err = answer(bundle)
    assert taps_ok(found["action"])
    vision, decoder = found["modules"]
    assert (vision["engine"], decoder["engine"]) == ("qnn", "ort")
    assert "simulator" in vision["note"]
    assert decoder["note"] is None
    assert err == ""


@pytest.mark.slow
def test_without_an_npu_the_quantized_onnx_runs_on_the_cpu_and_says_so(
    bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the provider lists on this machine's CPU is no NPU on another one.
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    find_npu.cache_clear()
    try:
        status, out, _ = run(capsys, "run", bundle, "--json", "--prompt", PROMPT, "--image", SCREEN)
    finally:
        find_npu.cache_clear()
    assert status == 0
    found = json.loads(out)
    assert taps_ok(found["action"])
    assert found["modules"][0]["engine"] == "ort"
    note = found["modules"][0]["note"]
    assert note.startswith("vision ran on the CPU, from the quantized ONNX: ")
    assert note.endswith("lists none here")


@pytest.mark.slow
def test_few_screens_are_validated_on_the_simulator(bundle: Path, capsys: Capture) -> None:
    status, out, _ = run(capsys, "validate", bundle, "--limit", "3", "--json")
    assert status == 4  # three screens are too few to tell
    found = json.loads(out)
    assert found["ran"]["vision"].endswith("HTP simulator")
    assert found["ran"]["decoder"] == "ONNX Runtime on the CPU"
    assert [metric["artifact"] == metric["reference"] for metric in found["metrics"][:2]] == [True, True]


@pytest.mark.slow
def test_a_graph_that_the_simulator_computes_otherwise_is_no_bundle(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    done = run_captured("export", "--target", "qcs6490", "--precision", "vision=a8w8", "-o", target)
    check_failure(done, 4, r"vision: the NPU's simulator computes a8w8 with a cosine of 0\.99\d\d .* choose a16w8")
    assert left_of(target) == []


def on_npu(profile: str) -> str:
    """With the decoder on the NPU, which is said to take it."""
    head, _, tail = profile.partition("[modules.decoder]")
    moved = tail.replace('placement.value = "cpu"', 'placement.value = "npu"', 1)
    return f"{head}[modules.decoder]{moved}".replace("npu_decoder.value = false", "npu_decoder.value = true")


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("vision=fp16", r"vision=fp16: the NPU of qcs6490 \(Hexagon v68\) computes integers, not fp16; choose a8w8"),
        ("vision=int4", "vision=int4: edgeglm compiles INT8 weights under calibrated integers for an NPU"),
        ("vision.layer.0=a8w8", "a module on the NPU has one precision for all of its parts"),
        ("a16w8", "decoder=a16w8: is made for an NPU, and qcs6490 has its decoder on the cpu"),
    ],
)
def test_what_the_npu_does_not_take_is_one_line(precision: str, why: str, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "bundle"
    check_failure(run(capsys, "export", "--target", "qcs6490", "--precision", precision, "-o", target), 3, why)
    assert left_of(target) == []


def test_a_decoder_on_the_npu_is_refused(tmp_path: Path, capsys: Capture) -> None:
    board = tmp_path / "board.toml"
    board.write_text(on_npu((PROFILES / "qcs6490.toml").read_text("utf-8")))
    done = run(capsys, "export", "--target", board, "-o", tmp_path / "bundle")
    check_failure(done, 3, "puts the decoder on the NPU, and edgeglm compiles image encoders alone for one")


def test_a_precision_for_all_leaves_the_npu_its_integers(capsys: Capture) -> None:
    notes = json.loads(run(capsys, "plan", "--target", "qcs6490", "--precision", "fp16", "--json")[1])["notes"]
    assert notes[0] == "vision stays INT8: it is on the NPU, which has no fp16"


def test_without_the_extra_the_line_that_installs_it_is_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        if name == qnn.DISTRIBUTION:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    version = metadata.version
    monkeypatch.setattr(metadata, "version", missing)
    target = tmp_path / "bundle"
    done = run(capsys, "export", "--target", "qcs6490", "-o", target)
    check_failure(done, 3, r"onnxruntime-qnn: compiles for the NPU, and is not installed; pip install 'edgeglm\[qnn\]'")
    assert left_of(target) == []


def test_a_model_of_ones_own_wants_samples(tmp_path: Path) -> None:
    opened = open_export(Request(DEMO, "mine", load_profile("qcs6490")))
    with pytest.raises(UsageError, match=r"vision on its NPU.*give samples by --calibration FILE"):
        npu_samples(opened, [])


def quantized(file: Path, operator: str = "Sigmoid") -> Path:
    """One operator of 8-bit integers."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy")
    values = {"step": np.float32(1 / 32), "zero": np.uint8(128), "unit": np.float32(1 / 256), "none": np.uint8(0)}
    steps = [("QuantizeLinear", "x step zero", "a"), ("DequantizeLinear", "a step zero", "b"), (operator, "b", "c")]
    steps += [("QuantizeLinear", "c unit none", "d"), ("DequantizeLinear", "d unit none", "y")]
    nodes = [
        helper.make_node(name, inputs.split(), [output], name=f"{name} of {output}") for name, inputs, output in steps
    ]
    constants = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), file)
    return file


def test_an_operator_that_the_compiler_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"has no form on this NPU for Erf of c \(Erf\); place it") as raised:
        compile_file(quantized(tmp_path / "model.onnx", "Erf"), "npu.onnx", QCS6490)
    assert "\n" not in str(raised.value)


def test_a_file_for_another_chip_of_the_same_architecture_is_refused(tmp_path: Path) -> None:
    # 30 is SM8350, which the compiler takes where it is told the architecture alone.
    other = compile_file(quantized(tmp_path / "model.onnx"), "npu.onnx", (30, 68))
    assert other.chip == "SM8350, Hexagon v68"
    with pytest.raises(UnsupportedError, match="compiled it for SM8350, v68, not for soc_model 93, v68"):
        emitter.chip_name(tmp_path / "npu.onnx", QCS6490)


def test_the_same_file_compiles_to_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    made = []
    for name in ("one", "another/place"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        sample = {"x": np.linspace(-3, 3, 16, dtype=np.float32).reshape(4, 4)}
        done = compile_file(quantized(folder / "model.onnx"), "npu.onnx", QCS6490, [sample], simulate=True)
        np.testing.assert_allclose(done.simulated[0]["y"], 1 / (1 + np.exp(-sample["x"])), atol=0.02)
        made.append((folder / "npu.onnx").read_bytes())
    assert made[0] == made[1]


def test_a_context_that_the_runtime_cannot_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "npu.onnx").write_bytes(b"no model")
    with pytest.raises(DamagedFileError, match=r"onnxruntime-qnn [\d.]+ cannot load it: ") as raised:
        Encoder(find_npu(), tmp_path / "npu.onnx", QCS6490)
    assert "\n" not in str(raised.value)


def test_what_the_vendor_prints_does_not_reach_the_terminal(capfd: Capture) -> None:
    with qnn.quiet():
        subprocess.run(["echo", "noise"], check=True)
    subprocess.run(["echo", "ours"], check=True)
    assert capfd.readouterr().out == "ours\n"
