"""Checkpoints of two tensors, whole and damaged, made byte by byte."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest

Header = dict[str, Any]

ARCHITECTURES = ["GlmForCausalLM", "Glm4ForCausalLM", "Glm4vForConditionalGeneration"]
CONFIG = {"architectures": ["Glm4ForCausalLM"]}
# Two tensors and their 40 bytes of data.
HEADER: Header = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [24, 40]},
}
DATA = bytes(range(40))


def pack(header: object, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(**fields: object) -> bytes:
    """Return a file whose ``b.weight`` has other fields; those that are None are left out."""
    header = copy.deepcopy(HEADER)
    entry = header["b.weight"] | fields
    header["b.weight"] = {name: value for name, value in entry.items() if value is not None}
    return pack(header)


def make(folder: Path, weights: bytes | None = None, config: object = CONFIG) -> Path:
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    return folder


def make_sharded(folder: Path, weight_map: object, **shards: bytes) -> Path:
    make(folder)
    for name, data in shards.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def one(name: str) -> bytes:
    """Return a shard that holds a single tensor."""
    return pack({name: {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4))


def tiny_model(architecture: str, *, tied: bool = False) -> Any:  # noqa: ANN401 (a transformers class chosen by name)
    transformers = pytest.importorskip("transformers")
    text: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 160, "pad_token_id": 0,
    }  # fmt: skip
    model = getattr(transformers, architecture)
    if architecture != "Glm4vForConditionalGeneration":
        return model(model.config_class(**text, head_dim=16, tie_word_embeddings=tied))
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    vision = {
        "depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 48, "image_size": 56
    }  # fmt: skip
    config = model.config_class(
        text_config=text | {"rope_parameters": rope}, vision_config=vision, tie_word_embeddings=tied
    )
    return model(config)
