"""Checkpoints by GPTQ, AWQ and compressed-tensors, beside the same arithmetic in torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError
from edgeglm.export.checkpoint.quantized.autoround import PLAIN
from edgeglm.export.checkpoint.reader import Checkpoint
from tests.export.quantized import (
    Quantizer,
    awq,
    fp8_blocks,
    fp8_rounded,
    fp8_rows,
    fp8_whole,
    gptq,
    int8,
    packed,
    save_quantized,
)
from tests.export.reading import check_rows
from tests.export.tiny import SHAPES

SHAPE = replace(SHAPES["glm4"], layers=1)
Case = tuple[dict[str, Any], Quantizer]


def by_gptq(bits: int, **more: object) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": False, "sym": False, **more}


def compressed(form: str, bits: int, strategy: str, kind: str = "int", **more: object) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def by_round(packing: str, **more: object) -> dict[str, Any]:
    return {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 32, **more}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
INT4, INT8, FP8 = "pack-quantized", "int-quantized", "float-quantized"
CASES: dict[str, Case] = {
    **{f"gptq {bits}": (by_gptq(bits), gptq(bits, 32)) for bits in (2, 3, 4, 8)},
    "gptq act order": (by_gptq(4, desc_act=True), gptq(4, 32, ordered=True)),
    "gptq whole rows": (by_gptq(4, group_size=-1), gptq(4, -1)),
    "gptq without g_idx": (by_gptq(4), gptq(4, 32, indexed=False)),
    "gptq v2": (by_gptq(4, checkpoint_format="gptq_v2"), gptq(4, 32, less=0)),
    "gptq v2 of 3 bits": (by_gptq(3, checkpoint_format="gptq_v2"), gptq(3, 32, less=0)),
    "gptq with other bits in some modules": (by_gptq(4, dynamic={".*": {"bits": 8}}), gptq(8, 32)),
    "awq": (AWQ, awq(32)),
    "awq as AutoAWQ first wrote it": (
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 16, "version": "GEMM"},
        awq(16),
    ),
    "auto-round": (by_round("auto_round:auto_gptq"), gptq(4, 32, symmetric=True, indexed=False)),
    **{f"{packing} asymmetric": (by_round(packing), gptq(4, 32, less=0, indexed=False)) for packing in PLAIN[:2]},
    "auto-round as awq": (by_round("auto_round:auto_awq", act_bits=16), awq(32)),
    "packed": (compressed(INT4, 4, "group", group_size=32), packed(4, 32, symmetric=True)),
    "packed asymmetric": (
        compressed(INT4, 4, "group", group_size=32, symmetric=False),
        packed(4, 32, symmetric=False),
    ),
    "packed rows": (compressed(INT4, 4, "channel"), packed(4, -1, symmetric=False)),
    "packed 8": (compressed(INT4, 8, "channel"), packed(8, -1, symmetric=True)),
    "packed 3": (compressed(INT4, 3, "group", group_size=16), packed(3, 16, symmetric=False)),
    "packed act order": (
        compressed(INT4, 4, "group", group_size=32, actorder="group"),
        packed(4, 32, symmetric=False, ordered=True),
    ),
    "int8 rows": (compressed(INT8, 8, "channel"), int8(-1, symmetric=True)),
    "int8 rows asymmetric": (compressed(INT8, 8, "channel", symmetric=False), int8(-1, symmetric=False)),
    "int8 groups": (compressed(INT8, 8, "group", group_size=32), int8(32, symmetric=False)),
    "int8 whole": (compressed(INT8, 8, "tensor"), int8(0, symmetric=False)),
    "fp8 rows": (compressed(FP8, 8, "channel", "float"), fp8_rounded(fp8_rows)),
    "fp8 whole": (compressed(FP8, 8, "tensor", "float"), fp8_rounded(fp8_whole)),
    "fp8 blocks": (
        compressed(FP8, 8, "block", "float", block_structure=[32, 48]),
        fp8_rounded(fp8_blocks((32, 48))),
    ),
}


@pytest.mark.parametrize(("settings", "quantizer"), CASES.values(), ids=CASES)
def test_rows_are_those_of_torch(settings: dict[str, Any], quantizer: Quantizer, tmp_path: Path) -> None:
    model = save_quantized(SHAPE, tmp_path, settings, quantizer)
    checkpoint = Checkpoint.open(tmp_path)
    check_rows(checkpoint, model)
    assert checkpoint.notes == ()
    assert not checkpoint.is_plain


def test_modules_that_were_left_are_plain_and_a_head_may_be_quantized(tmp_path: Path) -> None:
    model = save_quantized(replace(SHAPES["glm"], layers=1), tmp_path, CASES["gptq 4"][0], gptq(4, 32), skip="mlp")
    checkpoint = Checkpoint.open(tmp_path)
    check_rows(checkpoint, model)
    assert checkpoint.find("lm_head.weight").dtype.startswith("GPTQ 4")
    assert checkpoint.find("model.layers.0.mlp.down_proj.weight").dtype == "F32"


def test_what_a_config_says_of_activations_and_keys_is_a_note(tmp_path: Path) -> None:
    settings = compressed(INT8, 8, "channel")
    settings["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "dynamic": True}
    settings["kv_cache_scheme"] = {"num_bits": 8}
    save_quantized(SHAPE, tmp_path, settings, int8(-1, symmetric=True))
    (note,) = Checkpoint.open(tmp_path).notes
    assert "compressed-tensors quantizes activations and keys and values too, which edgeglm does not" in note


def test_headers_are_enough_for_the_shapes(tmp_path: Path) -> None:
    save_quantized(SHAPE, tmp_path, *CASES["packed"])
    whole = {name: tensor.shape for name, tensor in Checkpoint.open(tmp_path).tensors.items()}
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    headers = Checkpoint.open(tmp_path, headers_only=True)
    assert {name: tensor.shape for name, tensor in headers.tensors.items()} == whole


O_PROJ = "model.layers.0.self_attn.o_proj"
Change = Callable[[dict[str, Tensor]], object]
DAMAGE: dict[str, tuple[str, Change, str]] = {
    "no scales": ("gptq 4", lambda t: t.pop(f"{O_PROJ}.scales"), "qweight: is quantized, and its .scales is missing"),
    "no zero points": ("awq", lambda t: t.pop(f"{O_PROJ}.qzeros"), "qweight: is quantized, and its .qzeros is missing"),
    "scales in integers": (
        "awq",
        lambda t: t.update({f"{O_PROJ}.scales": t[f"{O_PROJ}.scales"].int()}),
        r"scales: is stored as I32 of shape \[6, 96\], where a matrix of F32 or F16 or BF16 is needed",
    ),
    "zero points of another matrix": (
        "gptq 4",
        lambda t: t.update({f"{O_PROJ}.qzeros": t[f"{O_PROJ}.qzeros"][:, :5].contiguous()}),
        r"qzeros: has shape \[6, 5\] where \[6, 12\] fits the other tensors of its matrix",
    ),
    "columns that are not all packed": (
        "gptq 4",
        lambda t: t.update({f"{O_PROJ}.qweight": t[f"{O_PROJ}.qweight"][:-1].contiguous()}),
        r"qweight: has shape \[23, 96\] where \[24, 96\] fits",
    ),
    "groups that do not divide": (
        "gptq without g_idx",
        lambda t: t.update(
            {f"{O_PROJ}.{part}": t[f"{O_PROJ}.{part}"][:5].contiguous() for part in ("scales", "qzeros")}
        ),
        "scales: has 5 groups, which do not fit 192 columns in groups of 32",
    ),
    "no order": (
        "gptq act order",
        lambda t: t.pop(f"{O_PROJ}.g_idx"),
        r"qweight: is quantized, and its \.g_idx, the order of its columns \(desc_act\), is missing",
    ),
    "no order of packed columns": (
        "packed act order",
        lambda t: t.pop(f"{O_PROJ}.weight_g_idx"),
        r"weight_packed: is quantized, and its weight_g_idx, the order of its columns \(actorder\), is missing",
    ),
    "no zero points of packed ones": (
        "packed asymmetric",
        lambda t: t.pop(f"{O_PROJ}.weight_zero_point"),
        "weight_packed: is quantized, and its weight_zero_point is missing",
    ),
    "no zero points of whole ones": (
        "int8 rows asymmetric",
        lambda t: t.pop(f"{O_PROJ}.weight_zero_point"),
        "weight: is quantized, and its weight_zero_point is missing",
    ),
    "unquantized too": (
        "gptq 4",
        lambda t: t.update({f"{O_PROJ}.weight": torch.zeros(96, 192)}),
        f"weight: is there beside {O_PROJ}.qweight, which stands for the same weight",
    ),
    "no shape": ("packed", lambda t: t.pop(f"{O_PROJ}.weight_shape"), "weight_packed: is quantized, and its weight_sh"),
    "another shape": (
        "packed",
        lambda t: t.update({f"{O_PROJ}.weight_shape": torch.tensor([96, 4000])}),
        r"weight_packed: has shape \[96, 24\], which does not fit a weight of shape \[96, 4000\]",
    ),
    "scales of another matrix": (
        "int8 rows",
        lambda t: t.update({f"{O_PROJ}.weight_scale": torch.ones(7, 1)}),
        r"weight_scale: has shape \[7, 1\], which does not fit a weight of shape \[96, 192\]",
    ),
    "zero points in another dtype": (
        "int8 rows",
        lambda t: t.update({f"{O_PROJ}.weight_zero_point": torch.ones(96, 1)}),
        "weight_zero_point: holds zero points of I8, and is stored as F32",
    ),
}


def changed(folder: Path, case: str, change: Change) -> Path:
    save_quantized(SHAPE, folder, *CASES[case])
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("case", "change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line(case: str, change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=rf"model\.safetensors: {O_PROJ}\.{message}"):
        Checkpoint.open(changed(tmp_path, case, change))


def test_groups_without_scales_are_one_line(tmp_path: Path) -> None:
    order = f"{O_PROJ}.g_idx"
    checkpoint = Checkpoint.open(changed(tmp_path, "gptq 4", lambda t: t[order].fill_(6)))
    with pytest.raises(DamagedFileError, match=rf"{order}: has groups beyond the 6 that have scales"):
        checkpoint.rows(f"{O_PROJ}.weight")


SETTINGS: dict[str, tuple[dict[str, Any], type[EdgeglmError], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, UnsupportedError, "is quantized by 'bitsandbytes'"),
    "torchao": (
        {"quant_method": "torchao"},
        UnsupportedError,
        "'torchao', and edgeglm reads fp8, .*compressed-tensors",
    ),
    "gptq's bits": (by_gptq(5), UnsupportedError, "by GPTQ to 5 bits, and edgeglm reads 2, 3, 4, 8"),
    "no bits": ({"quant_method": "gptq"}, DamagedFileError, "its quantization_config has None as bits"),
    "marlin": (by_gptq(4, checkpoint_format="marlin"), UnsupportedError, "in the layout marlin"),
    "awq gemv": (
        AWQ | {"version": "gemv"},
        UnsupportedError,
        "by AWQ to 4 bits in the layout gemv, and edgeglm reads 4",
    ),
    "auto-round's fp8": (by_round("auto_round:fp8"), UnsupportedError, "is packed by AutoRound as auto_round:fp8"),
    "auto-round of several bits": (
        by_round("auto_round", extra_config={"lm_head": {"bits": 8}}),
        UnsupportedError,
        "is quantized by AutoRound to 4 bits and others",
    ),
    "sparse": (compressed("marlin-24", 4, "group"), UnsupportedError, "in compressed-tensors' format marlin-24"),
    "rotations": (
        compressed(INT4, 4, "group") | {"transform_config": {"config_groups": {}}},
        UnsupportedError,
        "has a transform_config in its quantization_config",
    ),
    "modelopt's fp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, UnsupportedError, "by ModelOpt in nvfp4"),
    "groups that are no object": (
        {"quant_method": "compressed-tensors", "format": INT4, "config_groups": [3]},
        DamagedFileError,
        r"has \[3\] as config_groups",
    ),
}


@pytest.mark.parametrize(("settings", "error", "message"), SETTINGS.values(), ids=SETTINGS)
def test_what_is_not_read_is_one_line(
    settings: dict[str, Any], error: type[EdgeglmError], message: str, tmp_path: Path
) -> None:
    save_quantized(SHAPE, tmp_path, *CASES["gptq 4"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(error, match=rf"/config\.json: .*{message}"):
        Checkpoint.open(tmp_path)
