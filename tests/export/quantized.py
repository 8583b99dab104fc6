"""Checkpoints of tiny models in quantized formats, made by plain torch, each with the weights that it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.export.tiny import Shape, build

# What a quantizer makes of one weight: tensors by what comes behind the module's name, and what they stand for.
Quantizer = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def save_quantized(
    shape: Shape, folder: Path, settings: dict[str, Any], quantizer: Quantizer, skip: str = "lm_head"
) -> PreTrainedModel:
    """Write a checkpoint whose linear layers are quantized, and return the plain model of the same weights."""
    model = build(shape)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or skip in name:
            continue
        tensors, plain = quantizer(module.weight.data)
        del stored[f"{name}.weight"]
        stored |= {f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in tensors.items()}
        module.weight.data = plain.float()
    if shape.tied:
        del stored["lm_head.weight"]
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return model


def spread(scales: Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """Scales of blocks as one for each number; the blocks at the edges may be smaller."""
    wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]]


def fp8_blocks(block: tuple[int, int], kind: torch.dtype = torch.float8_e4m3fn) -> Quantizer:
    """DeepSeek's FP8: a scale a block, in fp32."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        rows, columns = (-(-extent // size) for extent, size in zip(weight.shape, block, strict=True))
        scales = torch.empty(rows, columns)
        for row in range(rows):
            for column in range(columns):
                some = weight[row * block[0] : (row + 1) * block[0], column * block[1] : (column + 1) * block[1]]
                scales[row, column] = some.abs().max() / 448
        wide = spread(scales, block, tuple(weight.shape))
        codes = (weight / wide).to(kind)
        return {"weight": codes, "weight_scale_inv": scales}, codes.float() * wide

    return quantize


def fp8_rows(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One scale a row, in bf16."""
    scales = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    codes = (weight / scales.float()).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales.float()


def fp8_whole(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One scale for all, and one for the inputs, as static FP8 has them."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    stored = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}
    return stored, codes.float() * scale


def rounded(weight: Tensor, bits: int, group: int, dtype: torch.dtype, middle: int | None) -> tuple[Tensor, ...]:
    """Codes (out, in) from 0 on, zero points and scales (out, groups) of a weight; `middle` is every zero point."""
    parts = weight.reshape(len(weight), -1, group)
    low, high, top = parts.amin(2), parts.amax(2), (1 << bits) - 1
    scales = ((high - low) / top if middle is None else parts.abs().amax(2) / (top - middle)).to(dtype)
    zeros = (-low / scales.float()).round().clamp(0, top) if middle is None else torch.full_like(low, middle)
    codes = (parts / scales.float()[..., None] + zeros[..., None]).round().clamp(0, top)
    return codes.reshape(weight.shape).int(), zeros.int(), scales


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers (n, k) of a row as one number of k * bits bits, cut into words."""
    words = -(-values.shape[1] * bits // 32)
    rows = []
    for row in values.tolist():
        number = sum(value << (index * bits) for index, value in enumerate(row))
        rows.append([number >> (32 * word) & 0xFFFFFFFF for word in range(words)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)


def gptq(
    bits: int, group: int, *, ordered: bool = False, less: int = 1, indexed: bool = True, symmetric: bool = False
) -> Quantizer:
    """GPTQ with zero points stored `less`; `ordered` puts the columns of a group anywhere, as desc_act does."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        size = columns if group < 0 else group
        order = torch.randperm(columns) if ordered else torch.arange(columns)
        middle = 1 << (bits - 1) if symmetric else None
        codes, zeros, scales = rounded(weight[:, order], bits, size, torch.float16, middle)
        zeros = zeros.clamp(min=less)
        index = torch.empty(columns, dtype=torch.int32)
        index[order] = torch.arange(columns, dtype=torch.int32) // size
        codes = codes[:, order.argsort()]
        plain = scales[:, index] * (codes - zeros[:, index]).half()
        stored = {"qweight": pack(codes, bits).T, "qzeros": pack((zeros - less).T, bits), "scales": scales.T}
        return stored | ({"g_idx": index} if indexed else {}), plain

    return quantize


def awq(group: int, *, symmetric: bool = False) -> Quantizer:
    """AWQ's layout for GEMM."""

    def interleaved(values: Tensor) -> Tensor:
        return pack(values.reshape(len(values), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape), 4)

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        codes, zeros, scales = rounded(weight, 4, group, torch.float16, 8 if symmetric else None)
        wide = [each.repeat_interleave(group, 1) for each in (zeros, scales)]
        plain = (codes - wide[0]).half() * wide[1]
        return {"qweight": interleaved(codes.T), "qzeros": interleaved(zeros.T), "scales": scales.T}, plain

    return quantize


def packed(bits: int, group: int, *, symmetric: bool, ordered: bool = False) -> Quantizer:
    """pack-quantized of compressed-tensors, with scales in bf16; `ordered` as its versions with a g_idx had it."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        size, middle = weight.shape[1] if group < 0 else group, 1 << (bits - 1)
        order = torch.randperm(weight.shape[1]) if ordered else torch.arange(weight.shape[1])
        codes, zeros, scales = rounded(weight[:, order], bits, size, torch.bfloat16, middle if symmetric else None)
        plain = (codes - zeros.repeat_interleave(size, 1)).bfloat16() * scales.repeat_interleave(size, 1)
        stored = {"weight_packed": pack(codes[:, order.argsort()], bits), "weight_scale": scales}
        stored["weight_shape"] = torch.tensor(weight.shape)
        if not symmetric:
            stored["weight_zero_point"] = pack(zeros.T, bits).T
        if ordered:
            stored["weight_g_idx"] = (order.argsort() // size).int()
        return stored, plain[:, order.argsort()]

    return quantize


def int8(group: int, *, symmetric: bool) -> Quantizer:
    """int-quantized of compressed-tensors: INT8 with scales of rows, of groups, or one (0)."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        rows = weight.reshape(1, -1) if group == 0 else weight
        size = rows.shape[1] if group < 1 else group
        codes, zeros, scales = rounded(rows, 8, size, torch.bfloat16, 128 if symmetric else None)
        plain = (codes - zeros.repeat_interleave(size, 1)).bfloat16() * scales.repeat_interleave(size, 1)
        if group == 0:
            scales, zeros = scales[0], zeros[0]
        stored = {"weight": (codes - 128).to(torch.int8).reshape(weight.shape), "weight_scale": scales}
        if not symmetric:
            stored["weight_zero_point"] = (zeros - 128).to(torch.int8)
        return stored, plain.reshape(weight.shape)

    return quantize


def fp8_rounded(quantizer: Quantizer) -> Quantizer:
    """float-quantized of compressed-tensors: the product in the scales' dtype."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stored, plain = quantizer(weight)
        scales = stored.pop("weight_scale", None)
        scales = stored.pop("weight_scale_inv") if scales is None else scales
        return stored | {"weight_scale": scales}, plain.to(scales.dtype)

    return quantize
