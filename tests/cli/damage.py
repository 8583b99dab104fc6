"""Ways to damage a tiny glm4 checkpoint, and what a command says of each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

MATRIX, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"
TABLE, WEIGHTS = "model.embed_tokens.weight", "model.safetensors"

Tensors = dict[str, NDArray[Any]]


def edit(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """Damage that is done to the tensors of a checkpoint."""

    def damage(folder: Path) -> None:
        tensors = {name: array.copy() for name, array in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return damage


def put(name: str, value: float) -> Callable[[Path], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].flat[3] = value

    return edit(change)


def shorten(name: str) -> Callable[[Path], None]:
    return edit(lambda tensors: tensors.update({name: tensors[name][:-1]}))


def make_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("{}")


def lie(folder: Path) -> None:
    """Make the header say another shape; its length stays."""
    data = (folder / WEIGHTS).read_bytes()
    assert data.count(b'"shape":[96,160]') == 3
    (folder / WEIGHTS).write_bytes(data.replace(b'"shape":[96,160]', b'"shape":[96,161]'))


def lose_shard(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {MATRIX: "model-00002-of-00002.safetensors"}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def configure(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return damage


SUPPORTED = "use one of GlmForCausalLM, Glm4ForCausalLM, Glm4vForConditionalGeneration"
DAMAGE: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "gone": (shutil.rmtree, 2, "copy: does not exist; give a directory"),
    "a file": (make_file, 2, "copy: is not (a directory; give a directory|an ONNX file; .* or a checkpoint's folder)"),
    "no config": (lambda folder: (folder / "config.json").unlink(), 2, r"copy: holds no config\.json; give"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), 2, r"copy: holds neither model\.safetensors"),
    "truncated": (lambda folder: os.truncate(folder / WEIGHTS, 200_000), 6, r"is cut off, the file ends at 200000"),
    "lying header": (lie, 6, r"down_proj\.weight: has 61440 bytes where F32 of shape \[96, 161\] takes"),
    "lost shard": (lose_shard, 6, r"model-00002-of-00002\.safetensors: is missing"),
    "pickle": (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), 3, r"save_pretrained\(NEW_DIR"),
    "architecture": (configure(architectures=["LlamaForCausalLM"]), 3, f"LlamaForCausalLM is not.*{SUPPORTED}"),
    "no object": (configure(text_config=3), 6, r"config\.json: its text_config is no object"),
    "missing weight": (edit(lambda tensors: tensors.pop(MATRIX)), 6, f"{MATRIX}: is missing, and the model needs it"),
    "missing table": (
        edit(lambda tensors: tensors.pop(TABLE)),
        6,
        "no weight of the embedding is there, only of",
    ),
    "short matrix": (shorten(MATRIX), 6, f"{MATRIX}: expected 96 rows"),
    "short norm": (shorten(NORM), 6, f"{NORM}: expected 96 rows"),
    "NaN": (put(TABLE, np.nan), 6, f"{TABLE}: the weight holds NaN or infinity; download it again"),
    "too large": (put(TABLE, 1e6), 3, f"{TABLE}: the weight holds 1e.06, more than float16 can"),
}
