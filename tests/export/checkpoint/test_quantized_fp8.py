"""Checkpoints in FP8, beside transformers' and torch's own readings of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.quantized.fp8 import TABLES
from edgeglm.export.checkpoint.reader import Checkpoint
from tests.export.quantized import Quantizer, fp8_blocks, fp8_rows, fp8_whole, save_quantized
from tests.export.reading import check_rows
from tests.export.tiny import SHAPES

SHAPE = replace(SHAPES["glm4"], layers=1)
BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 48]}
PLAIN = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
KINDS: dict[str, tuple[dict[str, Any], Quantizer]] = {
    "blocks that do not divide the matrix": (BLOCK, fp8_blocks((32, 48))),
    "blocks larger than a matrix": (BLOCK | {"weight_block_size": [128, 128]}, fp8_blocks((128, 128))),
    "e5m2": (BLOCK, fp8_blocks((32, 48), torch.float8_e5m2)),
    "a scale a row": (PLAIN, fp8_rows),
    "one scale": (PLAIN, fp8_whole),
}


@pytest.mark.parametrize("dtype", ["e4m3fn", "e5m2"])
def test_every_code_is_what_torch_makes_of_it(dtype: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(getattr(torch, f"float8_{dtype}"))
    table = np.array(TABLES[f"F8_{dtype[:4].upper()}"], np.float32)
    assert np.array_equal(table, codes.float().numpy(), equal_nan=True)


@pytest.mark.parametrize(("settings", "quantizer"), KINDS.values(), ids=KINDS)
def test_rows_are_those_of_torch(settings: dict[str, Any], quantizer: Quantizer, tmp_path: Path) -> None:
    model = save_quantized(SHAPES["glm4v-tied"], tmp_path, settings, quantizer)
    checkpoint = Checkpoint.open(tmp_path)
    check_rows(checkpoint, model)
    assert not checkpoint.is_plain
    (note,) = checkpoint.notes
    assert note == "the checkpoint's fp8 quantizes activations too, which edgeglm does not: it reads the weights alone"


def test_rows_are_those_of_transformers(tmp_path: Path) -> None:
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    model = save_quantized(SHAPE, tmp_path, BLOCK | {"weight_block_size": [16, 16]}, fp8_blocks((16, 16)))
    checkpoint, read = Checkpoint.open(tmp_path), 0
    stored = load_file(tmp_path / "model.safetensors")
    for name in model.state_dict():
        if f"{name}_scale_inv" in stored:
            theirs = integration.Fp8Dequantize(None).convert(
                {"weight": stored[name], "weight_scale_inv": stored[f"{name}_scale_inv"]}
            )["weight"]
            assert np.array_equal(checkpoint.rows(name), theirs.float().numpy())
            read += 1
    assert read == 6


def test_exponents_alone_are_scales_too(tmp_path: Path) -> None:
    quantize = fp8_blocks((32, 48))

    def powers(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stored, _ = quantize(weight)
        codes = stored["weight"].float()
        scales = torch.full_like(stored["weight_scale_inv"], 0.25)
        return stored | {"weight_scale_inv": scales.to(torch.float8_e8m0fnu)}, codes / 4

    model = save_quantized(SHAPE, tmp_path, BLOCK | {"scale_fmt": "ue8m0"}, powers)
    check_rows(Checkpoint.open(tmp_path), model)


def changed(weights: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)


NAME = "model.layers.0.self_attn.o_proj.weight"
DAMAGE: dict[str, tuple[Any, str]] = {
    "no scale": (
        lambda t: t.pop(f"{NAME}_scale_inv"),
        "is quantized, and its weight_scale_inv or weight_scale is miss",
    ),
    "scales of another matrix": (
        lambda t: t.update({f"{NAME}_scale_inv": torch.ones(7, 3)}),
        r"_scale_inv: has shape \[7, 3\], which does not fit a weight of shape \[96, 192\]",
    ),
    "scales turned over": (
        lambda t: t.update({f"{NAME}_scale_inv": t[f"{NAME}_scale_inv"].T.contiguous()}),
        r"_scale_inv: has shape \[4, 3\], which does not fit a weight of shape \[96, 192\]",
    ),
    "scales that are no numbers": (
        lambda t: t.update({f"{NAME}_scale_inv": torch.ones(3, 4, dtype=torch.int32)}),
        "holds scales, and is stored as I32",
    ),
    "a quantized vector": (
        lambda t: t.update({NAME: torch.ones(4).to(torch.float8_e4m3fn)}),
        r"is quantized, and has shape \[4\]",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line(change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path) -> None:
    save_quantized(SHAPE, tmp_path, BLOCK, fp8_blocks((32, 48)))
    changed(tmp_path / "model.safetensors", change)
    with pytest.raises(DamagedFileError, match=rf"model\.safetensors: {NAME}.*{message}"):
        Checkpoint.open(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number_is_a_weight_that_is_none(value: float, tmp_path: Path) -> None:
    """Whoever encodes it refuses it; no library warns meanwhile."""
    save_quantized(SHAPE, tmp_path, BLOCK, fp8_blocks((32, 48)))
    changed(tmp_path / "model.safetensors", lambda t: t[f"{NAME}_scale_inv"].fill_(value))
    assert not np.isfinite(Checkpoint.open(tmp_path).rows(NAME)).any()


@pytest.mark.parametrize("block", [3, [0, 128], [128], ["a", "b"], [True, 2]])
def test_a_wrong_block_size_is_one_line(block: object, tmp_path: Path) -> None:
    save_quantized(SHAPE, tmp_path, BLOCK, fp8_blocks((32, 48)))
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = block
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match=r"config\.json: its quantization_config has .* as weight_block_size"):
        Checkpoint.open(tmp_path)
