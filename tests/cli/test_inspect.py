"""``edgeglm inspect``: the table and the JSON of a bundle's manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from edgeglm.cli import inspect
from edgeglm.cli.main import main
from edgeglm.errors import UsageError
from tests.bundles import DECODER, EMBEDDING, sample_manifest, write_bundle

TEXT = """\
model   demo (Glm4vForConditionalGeneration, 2 layers of 32)
target  cpu: x86-64 computer (reference: 2 cores, 24GB)
size    5.01KiB in 4 files

MODULE     PRECISION  FORMAT  FILE                SIZE  ERROR
embedding  fp16       rows    embedding/rows.bin  1KiB  -
decoder    int4       onnx    decoder/model.onnx  4KiB  0.013

predicted peak memory
  export          300MiB
  1024 tokens     1GiB
  4096 tokens     2GiB
  8192 tokens     3GiB
made from
  weights         sha256 {weights}
  configuration   sha256 {config}
  calibration     -
  edgeglm         0.1.0
  torch           2.13.0
  context         -
  precision       auto
"""


def run(*arguments: str) -> str:
    return CliRunner().invoke(inspect.command, list(arguments), catch_exceptions=False).stdout


def test_the_text_has_modules_sizes_needs_and_origin(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    assert run(str(tmp_path)) == TEXT.format(weights="b" * 64, config="a" * 64)


def test_json_has_the_keys_of_export_and_plan(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    result = json.loads(run(str(tmp_path), "--json"))
    assert result["provenance"].pop("versions") == {"edgeglm": "0.1.0", "torch": "2.13.0"}
    assert result["modules"].pop(0)["max_relative_error"] is None
    assert result == {
        "bundle": str(tmp_path),
        "target": "cpu",
        "model": {"name": "demo", "architecture": "Glm4vForConditionalGeneration"},
        "modules": [
            {
                "name": "decoder",
                "precision": "int4",
                "format": "onnx",
                "file": "decoder/model.onnx",
                "bytes": 4101,
                "max_relative_error": 0.0125,
            }
        ],
        "bundle_bytes": 5127,
        "predicted_peak_rss_bytes": 300 << 20,
        "device_peak_rss_bytes": {"1024": 1 << 30, "4096": 2 << 30, "8192": 3 << 30},
        "provenance": {
            "config_sha256": "a" * 64,
            "weights_sha256": "b" * 64,
            "options": {"context": None, "precision": "auto"},
        },
    }


def test_the_parts_of_a_mixed_module_are_shown(tmp_path: Path) -> None:
    parts = {"layer.0": "int8", "layer.10": "int4", "layer.2": "int4", "back": "int8"}
    mixed = replace(DECODER, precision="mixed", parts=parts)
    write_bundle(tmp_path, replace(sample_manifest(), modules=(EMBEDDING, mixed)))
    lines = run(str(tmp_path)).splitlines()
    assert lines[7:9] == ["decoder, int4: layer.2, layer.10", "decoder, int8: back, layer.0"]
    embedding, decoder = json.loads(run(str(tmp_path), "--json"))["modules"]
    assert "parts" not in embedding
    assert (decoder["precision"], decoder["parts"]) == ("mixed", parts)


def test_the_manifest_is_enough(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    whole = run(str(tmp_path))
    (tmp_path / "decoder/weights.bin").unlink()
    assert run(str(tmp_path)) == whole


def test_what_is_no_bundle_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        run(str(tmp_path))
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"edgeglm: {tmp_path}: is not a bundle: it has no manifest.json; ")
