"""What `benchmarks/bundle_hashes.py` calls the same: bundles whose code, versions and predictions alone differ."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.bundle_hashes import Hashes, differences, hash_bundle, parse
from edgeglm.manifest import MANIFEST
from tests.bundles import reseal, write_bundle


def hashes(folder: Path) -> Hashes:
    return {("demo", file): sha256 for file, sha256 in hash_bundle(folder)}


def test_versions_predictions_and_code_are_left_out(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    before = hashes(tmp_path)
    reseal(tmp_path, lambda m: m["provenance"].update(versions={"edgeglm": "9"}))
    reseal(tmp_path, lambda m: m["predicted"].update(export_peak_rss_bytes=1))
    reseal(tmp_path, lambda m: m["files"].update({"run.pyz": {"bytes": 1, "sha256": "c" * 64}}))
    (tmp_path / "run.pyz").write_bytes(b"1")
    (tmp_path / "report.html").write_bytes(b"1")
    assert differences(before, hashes(tmp_path)) == []
    assert parse(f"{bundle} {file} {sha256}\n" for (bundle, file), sha256 in before.items()) == before


def test_a_byte_a_key_and_a_file_are_named(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    before = hashes(tmp_path)
    (tmp_path / "decoder/weights.bin").write_bytes(b"1")
    (tmp_path / "tokenizer/tokenizer.json").unlink()
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision/model.onnx").write_bytes(b"1")
    reseal(tmp_path, lambda m: m["modules"][0].update(max_relative_error=0.5))
    assert differences(before, hashes(tmp_path)) == [
        "demo decoder/weights.bin differs",
        f"demo {MANIFEST}#modules differs",
        "demo tokenizer/tokenizer.json is gone",
        "demo vision/model.onnx is new",
    ]
