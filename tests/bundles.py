"""A small bundle for the tests of what reads, writes and shows bundles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeglm import digest
from edgeglm.devices.loader import load_profile
from edgeglm.manifest import (
    BLANK_SEAL,
    MANIFEST,
    File,
    Generation,
    Manifest,
    Model,
    Module,
    Predicted,
    Provenance,
    Rope,
    Tensor,
    Vision,
)

CONTENT = {
    "decoder/model.onnx": b"graph",
    "decoder/weights.bin": bytes(range(256)) * 16,
    "embedding/rows.bin": b"\x01\x02" * 512,
    "tokenizer/tokenizer.json": b"{}",
}
ROWS_BYTES = 1024  # of 16 rows of 32 in fp16, as the manifest says
VISION = Vision(
    grid=(16, 8),
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    mean=(0.48, 0.46, 0.41),
    std=(0.27, 0.26, 0.28),
    image_start_token_id=10,
    image_token_id=14,
    image_end_token_id=11,
)
EMBEDDING = Module(
    name="embedding",
    file="embedding/rows.bin",
    format="rows",
    precision="fp16",
    placement="cpu",
    inputs=(Tensor("input_ids", "int64", ("sequence",)),),
    outputs=(Tensor("hidden", "float32", ("sequence", 32)),),
)
DECODER = Module(
    name="decoder",
    file="decoder/model.onnx",
    format="onnx",
    precision="int4",
    placement="cpu",
    engine="ort",
    dialect="ort",
    inputs=(Tensor("hidden", "float32", (1, "sequence", 32)),),
    outputs=(Tensor("logits", "float32", (1, 1, 16)),),
    max_relative_error=0.0125,
)


def sample_manifest(files: dict[str, File] | None = None) -> Manifest:
    """A manifest of a decoder and its embedding rows."""
    return Manifest(
        model=Model(
            name="demo",
            architecture="Glm4vForConditionalGeneration",
            family="glm4v",
            hidden_size=32,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocabulary=16,
            max_positions=4096,
            rope=Rope(theta=10000.0, partial_rotary_factor=0.5, mrope_sections=(2, 1, 1)),
            vision=VISION,
        ),
        profile=load_profile("cpu"),
        modules=(EMBEDDING, DECODER),
        generation=Generation(eos_token_ids=(0, 7), pad_token_id=0),
        provenance=Provenance(
            config_sha256="a" * 64,
            weights_sha256="b" * 64,
            versions={"edgeglm": "0.1.0", "torch": "2.13.0"},
            options={"precision": "auto", "context": None},
        ),
        predicted=Predicted(300 << 20, {1024: 1 << 30, 8192: 3 << 30, 4096: 2 << 30}),
        files=files or {},
    )


def write_bundle(folder: Path, like: Manifest | None = None) -> Manifest:
    """Write CONTENT and its manifest, whose paths are those of the modules."""
    files = {}
    for relative, data in CONTENT.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        files[relative] = File(hashlib.sha256(data).hexdigest(), len(data))
    manifest = msgspec.structs.replace(like or sample_manifest(), files=files)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return manifest


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as one would who knows how it is sealed."""
    path = folder / MANIFEST
    tree = json.loads(path.read_bytes())
    change(tree)
    tree["seal"] = BLANK_SEAL
    data = json.dumps(tree).encode()
    path.write_bytes(data.replace(BLANK_SEAL.encode(), hashlib.sha256(data).hexdigest().encode()))


def believe_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new folder of verified hashes, which small files that have just been written may enter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("SETTLED_NS", "WRITTEN_BACK_NS", "ALWAYS_BYTES"):
        monkeypatch.setattr(digest, name, -1)
    monkeypatch.setattr(digest, "TRUSTED", {digest._file_system(tmp_path)})
    return tmp_path / "cache" / "edgeglm" / "verified"
