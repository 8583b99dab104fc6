"""The generator of random checkpoints, against the transformers classes that it imitates."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.random_shapes import CONFIGS, shape_config, weight_shapes
from edgeglm.errors import BudgetError, UsageError
from edgeglm.export.checkpoint.reader import Checkpoint

ROOT = Path(__file__).parents[1]
FAMILIES = ["glm4-300m", "glm4-1b", "autoglm-phone-9b"]


def tiny_config(shape: str) -> dict[str, Any]:
    """Return a named shape's config with every extent made small."""
    config = shape_config(shape, layers=2)
    small = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 160, "num_attention_heads": 4, "pad_token_id": 0}
    text = config.get("text_config", config)
    text |= small | {"num_key_value_heads": 2}
    if "head_dim" in text:
        text |= {"head_dim": 16, "eos_token_id": [1]}
    if "vision_config" in config:
        text["rope_parameters"]["mrope_section"] = [1, 1, 2]
        vision = {"hidden_size": 32, "num_heads": 2, "depth": 2, "out_hidden_size": 64, "intermediate_size": 48}
        config["vision_config"] |= vision | {"image_size": 56}
        tokens = [name for name in config if name.endswith("_token_id")]
        config |= {name: 2 + i for i, name in enumerate(tokens)}
    return config


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/random_checkpoint.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shape", CONFIGS)
def test_names_shapes_and_config_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = shape_config(shape, layers=2)
    (tmp_path / "config.json").write_text(json.dumps(ours))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = getattr(transformers, ours["architectures"][0])(config)
    theirs = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    assert list(weight_shapes(ours).items()) == list(theirs.items())
    written = json.loads(config.to_json_string()) | {"transformers_version": ours["transformers_version"]}
    assert ours == written


@pytest.mark.parametrize("shape", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [10**9, 50_000], ids=["whole", "sharded"])
def test_transformers_loads_it(shape: str, shard_bytes: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = tiny_config(shape)
    size = write_checkpoint(config, tmp_path, shard_bytes=shard_bytes)
    single = [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert single == (size <= shard_bytes)
    loader = getattr(transformers, config["architectures"][0])
    model, report = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    state, checkpoint = model.state_dict(), Checkpoint.open(tmp_path)
    assert checkpoint.total_bytes == size
    for name in weight_shapes(config):
        assert state[name].dtype == torch.bfloat16
        assert np.array_equal(checkpoint.rows(name), state[name].float().numpy())
    with torch.no_grad():
        assert model(torch.tensor([[9, 8, 7]])).logits.isfinite().all()


def test_shards_are_filled_up_to_the_limit(tmp_path: Path) -> None:
    write_checkpoint(tiny_config("glm4-300m"), tmp_path, shard_bytes=50_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, 5)]
    tensors = Checkpoint.open(tmp_path).tensors.values()
    filled = [sum(tensor.nbytes for tensor in tensors if tensor.file == file) for file in files]
    assert all(size <= 50_000 for size in filled)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    config = tiny_config("autoglm-phone-9b")
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        write_checkpoint(config, tmp_path / name, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_a_tensor_does_not_depend_on_shards_and_layers(tmp_path: Path) -> None:
    config = tiny_config("glm4-300m")
    write_checkpoint(config, tmp_path / "a")
    write_checkpoint(config | {"num_hidden_layers": 1}, tmp_path / "b", shard_bytes=50_000)
    name = "model.layers.0.mlp.down_proj.weight"
    whole, sharded = (Checkpoint.open(tmp_path / folder).rows(name) for folder in "ab")
    assert np.array_equal(whole, sharded)


def test_weights_are_normal_norms_near_one_and_layers_distinct(tmp_path: Path) -> None:
    write_checkpoint(tiny_config("glm4-300m") | {"hidden_size": 256}, tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    layers = [f"model.layers.{layer}." for layer in range(2)]
    weights = [checkpoint.rows(f"{layer}mlp.gate_up_proj.weight") for layer in layers]
    assert weights[0].std() == pytest.approx(1 / 16, rel=0.02)
    assert abs(weights[0].mean()) < 1e-3
    assert (np.abs(weights[0]) > 3 / 16).mean() == pytest.approx(0.0027, rel=0.3)
    assert np.corrcoef(weights[0].ravel(), weights[1].ravel())[0, 1] == pytest.approx(0, abs=0.03)
    norm = checkpoint.rows(f"{layers[0]}input_layernorm.weight")
    assert norm.mean() == pytest.approx(1, abs=0.01)
    assert 0.01 < norm.std() < 0.03


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9))
    with pytest.raises(BudgetError, match=r"953\.67MiB free of the 19\.\d+GiB that it takes; free some"):
        write_checkpoint(shape_config("autoglm-phone-9b"), tmp_path / "new/folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("is_file", [False, True])
def test_what_exists_is_not_overwritten(tmp_path: Path, is_file: bool) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError, match="is not an empty directory"):
        write_checkpoint(tiny_config("glm4-1b"), tmp_path / "precious" if is_file else tmp_path)
    assert contents(tmp_path) == {"precious": b"x"}


def test_the_script_needs_little_memory(tmp_path: Path) -> None:
    done = run("glm4-300m", tmp_path / "out", "--layers", "1", "--seed", "2")
    assert done.returncode == 0, done.stderr
    line = re.fullmatch(r".*/out: 76M parameters, (.*)MiB in .* peak RSS (.*)MiB\n", done.stdout)
    assert line, done.stdout
    assert float(line[1]) > 140
    # One of its two largest tensors, held whole with the random bits it is made from, would take 130 MB more.
    assert float(line[2]) < 110


@pytest.mark.parametrize("arguments", [["glm4-7b", "x"], ["glm4-1b", "x", "--layers", "-1"], ["glm4-1b", __file__]])
def test_a_wrong_argument_is_said_without_a_traceback(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "random_checkpoint" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
