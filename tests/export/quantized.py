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
