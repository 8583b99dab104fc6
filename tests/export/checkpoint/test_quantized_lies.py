"""Quantized checkpoints whose config and tensors contradict each other, or whose parts cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint.reader import Checkpoint
from tests.export.checkpoint.test_quantized_integers import CASES, O_PROJ, SHAPE, by_gptq, changed
from tests.export.quantized import gptq, save_quantized


@pytest.mark.parametrize(("case", "part"), [("gptq act order", "g_idx"), ("packed asymmetric", "weight_zero_point")])
def test_a_part_in_a_dtype_that_is_not_read_is_not_left_out(case: str, part: str, tmp_path: Path) -> None:
    name = f"{O_PROJ}.{part}"
    with pytest.raises(UnsupportedError, match=rf"{name}: is stored as F64, and belongs to a quantized weight"):
        Checkpoint.open(changed(tmp_path, case, lambda t: t.update({name: t[name].double()})))


@pytest.mark.parametrize("word", ["dynamic", True], ids=str)
def test_an_order_of_columns_by_another_word_is_missed_too(word: object, tmp_path: Path) -> None:
    """As compressed-tensors takes `actorder`: each of them is its "group"."""
    changed(tmp_path, "packed act order", lambda t: t.pop(f"{O_PROJ}.weight_g_idx"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] = word
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match="its weight_g_idx, the order of its columns"):
        Checkpoint.open(tmp_path)


def with_size(folder: Path, size: object) -> Checkpoint:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["group_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(folder)


def test_groups_that_do_not_divide_end_with_a_smaller_one(tmp_path: Path) -> None:
    """Two groups of 192 columns are 128 and 64 where the config says 128, as an order of columns would say it."""
    order = {f"{O_PROJ}.g_idx": torch.arange(192, dtype=torch.int32) // 128}
    plain = save_quantized(SHAPE, tmp_path, by_gptq(4, group_size=96), gptq(4, 96, indexed=False), skip="mlp")
    assert plain is not None
    first = with_size(tmp_path, 96).rows(f"{O_PROJ}.weight")
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight") and "o_proj" not in name]
    config["quantization_config"]["dynamic"] = {name: {"group_size": 96} for name in names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended = with_size(tmp_path, 128).rows(f"{O_PROJ}.weight")
    save_file(tensors | order, tmp_path / "model.safetensors")
    ordered = Checkpoint.open(tmp_path).rows(f"{O_PROJ}.weight")
    assert (ended == ordered).all()
    assert not (ended == first).all()


@pytest.mark.parametrize(
    ("case", "size"), [("gptq without g_idx", 48), ("awq", 64), ("gptq without g_idx", -1)], ids=str
)
def test_a_size_of_groups_that_the_scales_have_not_is_one_line(case: str, size: int, tmp_path: Path) -> None:
    save_quantized(SHAPE, tmp_path, *CASES[case])
    with pytest.raises(DamagedFileError, match=r"scales: has \d+ groups, which do not fit \d+ columns in groups"):
        with_size(tmp_path, size)


@pytest.mark.parametrize("size", [0, -5, "64", 64.5], ids=str)
def test_what_is_no_size_of_groups_is_one_line(size: object, tmp_path: Path) -> None:
    save_quantized(SHAPE, tmp_path, *CASES["awq"])
    with pytest.raises(DamagedFileError, match=rf"config\.json: its quantization_config has {size!r} as group_size"):
        with_size(tmp_path, size)


@pytest.mark.parametrize("case", ["gptq 4", "awq", "packed", "int8 rows", "fp8 whole"])
def test_quantized_weights_without_a_word_of_it_are_one_line(case: str, tmp_path: Path) -> None:
    save_quantized(SHAPE, tmp_path, *CASES[case])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match=r"config\.json: has no quantization_config, and the weights are quanti"):
        Checkpoint.open(tmp_path)
