"""What is kept of proofs: those that passed, of the same files alone; and torch does not load for what is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import msgspec

from edgeglm.bundle import load_bundle
from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export import api
from edgeglm.export.checkpoint import reader
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate.original.proven import check_pictures, unproven_bytes
from tests.export.tiny import SHAPES, save
from tests.runtimes.demo import demo_bundle

PLENTY = 1 << 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_proof_that_passed_is_not_made_again_until_a_file_changes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(SHAPES["glm4"], folder)
    assert unproven_bytes(Checkpoint.open(folder), 1) > 1
    assert unproven_bytes(Checkpoint.open(folder), PLENTY) == 0
    assert unproven_bytes(Checkpoint.open(folder), 1) == 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    assert unproven_bytes(Checkpoint.open(folder), 1) > 1


def test_a_proof_that_failed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    save(SHAPES["glm4"], folder)
    monkeypatch.setattr(reader, "normalize", lambda config, _: dict(config) | {"rms_norm_eps": 1e-2})
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="transformers reads it otherwise"):
            unproven_bytes(Checkpoint.open(folder), PLENTY)


def test_pictures_are_proven_for_what_each_manifest_says(tmp_path: Path) -> None:
    bundle, original = load_bundle(demo_bundle(tmp_path / "bundle", "cpu", "fp32")), Checkpoint.open(DEMO)
    vision = bundle.manifest.model.vision
    assert vision is not None
    check_pictures(bundle.folder, vision, original)
    with pytest.raises(AccuracyError, match="pixels become other numbers"):
        check_pictures(bundle.folder, msgspec.structs.replace(vision, mean=(0.1, 0.2, 0.3)), original)


def test_what_is_known_of_the_original_needs_no_torch(tmp_path: Path) -> None:
    request = api.ValidateRequest(bundle=demo_bundle(tmp_path / "bundle", "cpu", "fp32"), limit=2, accuracy_drop=1.0)
    first = api.validate(request)
    program = (
        "import sys; from pathlib import Path; from edgeglm.export import api; "
        "api.validate(api.ValidateRequest(bundle=Path(sys.argv[1]), limit=2, accuracy_drop=1.0)); "
        "print(*sorted({'torch', 'transformers', 'onnx_ir'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(request.bundle)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "\n"
    assert first.samples == 2
