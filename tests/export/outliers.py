"""Give a checkpoint the outlier channels of a large language model, without changing what it computes."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# The weight of a norm -> the Linear layers that read it, in the names of transformers' GLM families.
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_up_proj",),
    "norm1": ("attn.qkv",),
    "norm2": ("mlp.gate_proj", "mlp.up_proj"),
}
NORM = re.compile(rf"(?P<block>.*\.\d+\.)(?P<norm>{'|'.join(READERS)})\.weight")


def inject_outliers(
    state: dict[str, Tensor], factor: float = 64.0, channels: int = 8, seed: int = 3
) -> dict[str, Tensor]:
    """A copy of fp32 `state` in which `channels` channels after every norm are `factor` times larger.

    The columns that read them are divided by `factor`, a power of two, so every product is the same number.
    """
    if factor.hex().split("p")[0] != "0x1.0000000000000":
        raise ValueError(f"factor {factor} is not a power of two: results would be rounded differently")
    generator = torch.Generator().manual_seed(seed)
    changed = {name: value.clone() for name, value in state.items()}
    for name in state:
        if not (found := NORM.fullmatch(name)):
            continue
        chosen = torch.randperm(len(state[name]), generator=generator)[:channels]
        changed[name][chosen] *= factor
        for reader in READERS[found["norm"]]:
            changed[f"{found['block']}{reader}.weight"][:, chosen] /= factor
    return changed
