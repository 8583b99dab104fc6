"""``edgeglm plan``: what it says before an export is what the export then gives."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import random_checkpoint, random_shapes
from edgeglm.bundle import read_manifest
from edgeglm.devices.loader import PROFILES
from edgeglm.export import api
from edgeglm.manifest import Manifest
from edgeglm.units import format_size
from tests.cli.commands import check_failure, run
from tests.cli.damage import MATRIX, edit
from tests.export.tiny import SHAPES, save
from tests.runtimes.demo import demo_bundle

Capture = pytest.CaptureFixture[str]
KEYS = [
    "fits", "target", "context", "export_peak_rss_bytes", "calibration_disk_bytes", "bundle_bytes",
    "device_peak_rss_bytes", "blockers", "precisions", "notes", "recommended",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(SHAPES["glm4"], folder)
    return folder


@pytest.fixture
def headers(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint whose weights end after their header."""
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    weights = folder / "model.safetensors"
    os.truncate(weights, 8 + int.from_bytes(weights.read_bytes()[:8], "little"))
    return folder


def plan(capsys: Capture, *arguments: object) -> dict[str, Any]:
    status, out, err = run(capsys, "plan", *arguments, "--json")
    assert (status, err) == (0, "")
    result: dict[str, Any] = json.loads(out)
    assert list(result) == KEYS
    assert all(list(blocker) == ["module", "reason", "remedy"] for blocker in result["blockers"])
    return result


def check(said: dict[str, Any], made: Manifest) -> None:
    assert said["target"] == made.profile.name
    assert said["bundle_bytes"] == made.bundle_bytes - made.files["report.html"].bytes
    peaks = {int(context): size for context, size in said["device_peak_rss_bytes"].items()}
    assert peaks == made.predicted.device_peak_rss_bytes
    assert max(peaks) == made.model.max_positions


MIXED = "int4,decoder.layer.1=int8-block,decoder.back=fp16"


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "int8", "int8-block", "int4", "embedding=int8", MIXED])
def test_the_bundle_is_as_large_as_the_plan_says(precision: str, tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = (tiny, "--target", "cpu", "--precision", precision)
    assert run(capsys, "export", *arguments, "-o", tmp_path / "bundle")[0] == 0
    check(plan(capsys, *arguments), read_manifest(tmp_path / "bundle"))


def test_keys_and_values_in_fp16_take_half_in_the_plan_and_in_the_bundle(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = (tiny, "--target", "cpu", "--kv", "fp16")
    assert run(capsys, "export", *arguments, "-o", tmp_path / "bundle")[0] == 0
    half, made = plan(capsys, *arguments), read_manifest(tmp_path / "bundle")
    check(half, made)
    assert made.provenance.options["kv"] == "fp16"
    decoder = next(module for module in made.modules if module.is_decoder)
    states = [tensor for tensor in decoder.inputs + decoder.outputs if tensor.name.startswith(("cache_", "new_"))]
    assert {tensor.dtype for tensor in states} == {"float16"}
    wide = plan(capsys, *arguments[:-2])["device_peak_rss_bytes"]
    assert all(size < wide[context] for context, size in half["device_peak_rss_bytes"].items())


def test_keys_and_values_in_fp16_are_for_onnx_runtime(tiny: Path, capsys: Capture) -> None:
    result = run(capsys, "plan", tiny, "--target", "jetson-orin", "--kv", "fp16")
    check_failure(result, 3, "--kv fp16: is made for ONNX Runtime on the CPU, and jetson-orin has .* elsewhere; ")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "jetson"])
def test_the_demo_is_as_large_as_the_plan_says(target: str, tmp_path: Path, capsys: Capture) -> None:
    check(plan(capsys, "--target", target), read_manifest(demo_bundle(tmp_path / "bundle", target, "auto")))


def test_json_of_a_model_that_fits(tiny: Path, capsys: Capture) -> None:
    result = plan(capsys, tiny, "--target", "cpu", "--context", "512")
    assert result["fits"] is True
    assert result["context"] == 512
    assert list(result["device_peak_rss_bytes"]) == ["512"]
    assert result["blockers"] == []
    assert result["recommended"] == "auto"
    assert result["export_peak_rss_bytes"] > 100e6
    assert [option["precision"] for option in result["precisions"]] == ["fp32", "fp16", "int8", "int4"]
    sizes = [option["bundle_bytes"] for option in result["precisions"]]
    assert sizes == sorted(sizes, reverse=True)
    assert result["notes"] == [f"{tiny} has no tokenizer.json: its bundle can be measured, but takes no text"]


def test_headers_are_enough(tiny: Path, headers: Path, capsys: Capture) -> None:
    whole, cut = (plan(capsys, folder, "--target", "cpu") for folder in (tiny, headers))
    assert whole | {"notes": []} == cut | {"notes": []}
    status, out, err = run(capsys, "export", headers, "--target", "cpu", "-o", headers / "bundle")
    check_failure((status, out, err), 6, r"model\.safetensors: .* is cut off")


def test_the_text_is_a_table_of_precisions(tiny: Path, capsys: Capture) -> None:
    status, out, err = run(capsys, "plan", tiny, "--target", "cpu", "--precision", "int8")
    assert (status, err) == (0, "")
    first, peak, _, *rows = out.splitlines()
    assert first == "tiny on cpu: fits at 512 tokens"
    assert peak.startswith("export peak  ")
    assert rows[0].split() == ["PRECISION", "BUNDLE", "AT", "512", "FITS", "18GiB"]
    assert [row.split()[0] for row in rows[1:5]] == ["int8", "fp32", "fp16", "int4"]
    assert rows[5] == ""
    assert all(row.endswith("yes") for row in rows[1:5])
    assert rows[-1] == "recommended  int8"


def test_int4_needs_temporary_disk_to_be_calibrated(tiny: Path, capsys: Capture) -> None:
    needed = plan(capsys, tiny, "--target", "cpu", "--precision", "int4")["calibration_disk_bytes"]
    assert needed > 3 * 2 * 96 * 96  # of each layer the covariance of one value at least, in fp16
    status, out, _ = run(capsys, "plan", tiny, "--target", "cpu", "--precision", "int4")
    assert status == 0
    assert f"with --calibration  {format_size(needed)} of temporary disk" in out.splitlines()
    assert plan(capsys, tiny, "--target", "cpu", "--precision", "int8")["calibration_disk_bytes"] == 0


def test_a_smaller_precision_is_recommended_where_only_it_fits(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    options = {option["precision"]: option for option in plan(capsys, tiny, "--target", "cpu")["precisions"]}
    usable = options["int8"]["device_peak_rss_bytes"]["512"]
    assert usable < options["fp16"]["device_peak_rss_bytes"]["512"]
    small = tmp_path / "small.toml"
    profile = (PROFILES / "cpu.toml").read_text()
    small.write_text(profile.replace('usable.value = "18GiB"', f"usable.value = {usable}"))
    result = plan(capsys, tiny, "--target", small, "--precision", "fp32")
    assert result["fits"] is False
    assert result["recommended"] == "int8"
    (blocker,) = result["blockers"]
    assert blocker["module"] == "decoder"
    assert "memory is too small" in blocker["reason"]
    assert blocker["remedy"] == "here int8 fits: --precision int8"


@pytest.mark.slow
def test_nine_billion_parameters_do_not_fit_eight_gigabytes(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeglm.cli.plan.plan", functools.cache(api.plan))  # both forms are of one result
    config = random_shapes.shape_config("autoglm-phone-9b")
    (tmp_path / "config.json").write_text(json.dumps(config))
    headed = random_checkpoint.header(random_shapes.weight_shapes(config))
    (tmp_path / "model.safetensors").write_bytes(headed)
    result = plan(capsys, tmp_path, "--target", "qcs6490")
    assert result["fits"] is False
    assert result["recommended"] is None
    assert not any(option["fits"] for option in result["precisions"])
    reasons = " ".join(blocker["reason"] for blocker in result["blockers"])
    assert "v73" in reasons
    assert "memory is too small" in reasons
    assert "jetson-orin" in result["blockers"][-1]["remedy"]
    status, out, _ = run(capsys, "plan", tmp_path, "--target", "qcs6490")
    assert status == 0
    assert "does not fit" in out.splitlines()[0]
    assert out.endswith("recommended  another device\n")


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ("--target rpi4", 2, "rpi4: is not a device profile; did you mean rpi5?"),
        ("--target jetson-xavier", 3, "jetson-xavier: decoder: its GPU takes no attention of varying length"),
        ("--target cpu --precision banana", 2, "'banana'.*choose one of a16w8, a8w8, fp16, fp32, int4, int4-128, int8"),
        ("--target cpu --context 10000000", 3, "give at most 512"),
        ("--target cpu --image-size 504x1008", 2, "--image-size: the model takes no images"),
        ("", 2, "plan: Missing option '--target'"),
    ],
)
def test_a_wrong_option_is_one_line(options: str, status: int, why: str, tiny: Path, capsys: Capture) -> None:
    check_failure(run(capsys, "plan", tiny, *options.split()), status, why)


def test_a_weight_that_the_header_lacks_is_one_line(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    edit(lambda tensors: tensors.pop(MATRIX))(folder)
    check_failure(run(capsys, "plan", folder, "--target", "cpu"), 6, f"{MATRIX}: is missing, and the model needs it")
