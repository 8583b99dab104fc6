"""What config.json says of counts and sizes is compared with the headers before anything is made so often or large."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.devices.loader import load_profile
from edgeglm.errors import DamagedFileError
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Opened, Request
from tests.export.tiny import SHAPES, save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save(SHAPES["glm4v"], folder)
    return folder


def opened(checkpoint: Path, folder: Path, part: str, key: str, value: object) -> Opened:
    """The checkpoint with another value in its config."""
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    config[part][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    return open_export(Request(folder, "tiny", load_profile("cpu"), image_sizes=((84, 112),)))


LIES = [
    ("text_config", "num_hidden_layers", 4, "3 layers"),
    ("text_config", "num_hidden_layers", 2, "3 layers"),
    ("text_config", "num_hidden_layers", 10**9, "3 layers"),
    ("text_config", "num_hidden_layers", 10**40, "3 layers"),
    ("text_config", "vocab_size", 10**12, "256 there (embed_tokens.weight)"),
    ("text_config", "hidden_size", 129, "128 there (embed_tokens.weight)"),
    ("text_config", "intermediate_size", 10**9, "160 there (layers.0.mlp.down_proj.weight)"),
    ("vision_config", "depth", 10**9, "2 layers"),
    ("vision_config", "hidden_size", 10**9, "48 there"),
    ("vision_config", "in_channels", 4, "3 there"),
    ("vision_config", "patch_size", 15, "14 there"),
    ("vision_config", "temporal_patch_size", 3, "2 there"),
    ("vision_config", "out_hidden_size", 10**9, "128 there"),
    ("vision_config", "spatial_merge_size", 3, "2 there"),
    ("vision_config", "intermediate_size", 10**9, "72 there"),
    ("vision_config", "image_size", 336, "64 there (visual.embeddings.position_embedding.weight)"),
    ("vision_config", "image_size", 0, "64 there (visual.embeddings.position_embedding.weight)"),
]


@pytest.mark.parametrize(("part", "key", "value", "there"), LIES, ids=str)
def test_a_count_that_the_weights_have_not_is_one_line_at_once(
    checkpoint: Path, tmp_path: Path, part: str, key: str, value: int, there: str
) -> None:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedFileError) as caught:
        opened(checkpoint, tmp_path / "lie", part, key, value)
    also = " and patch_size 14" if key == "image_size" else ""
    assert f"lie/config.json: its {key} is {value}{also}, and the weights have {there}" in str(caught.value)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("heads", ["num_attention_heads", "num_key_value_heads"])
def test_heads_are_counted_by_their_size(checkpoint: Path, tmp_path: Path, heads: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())["text_config"]
    folder = tmp_path / "true"
    opened(checkpoint, folder, "text_config", "head_dim", 32)
    true = json.loads((folder / "config.json").read_text())
    true["text_config"][heads] = config[heads] + 1
    (folder / "config.json").write_text(json.dumps(true))
    with pytest.raises(DamagedFileError, match=rf"its {heads} is {config[heads] + 1} and head_dim 32, and the weights"):
        open_export(Request(folder, "tiny", load_profile("cpu"), image_sizes=((84, 112),)))


@pytest.mark.parametrize("value", [-1, True, 2.5, "3", [3]], ids=str)
def test_what_is_no_count_is_one_line(checkpoint: Path, tmp_path: Path, value: object) -> None:
    with pytest.raises(DamagedFileError, match=r"its num_hidden_layers is .*, which is no count"):
        opened(checkpoint, tmp_path / "lie", "text_config", "num_hidden_layers", value)


def test_layers_that_guess_further_tokens_are_no_part_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    opened(checkpoint, folder, "text_config", "num_nextn_predict_layers", 1)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert open_export(Request(folder, "tiny", load_profile("cpu"), image_sizes=((84, 112),)))
