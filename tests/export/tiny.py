"""Small random checkpoints of the real classes, whose shapes vary what breaks ports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """What is varied; sizes of a vision tower only for glm4v."""

    family: str
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    width: int = 96
    partial_rotary: float = 0.5
    bias: bool = True
    tied: bool = False
    mrope: tuple[int, int, int] = (2, 3, 3)
    grid: tuple[int, int] = (8, 12)
    vision_bias: bool = False
    vocabulary: int = 256

    @property
    def hidden(self) -> int:
        """Glm4v has no head size of its own."""
        return self.heads * self.head_dim if self.family == "glm4v" else self.width


SHAPES = {
    "glm": Shape("glm"),
    "glm-tied-one-head": Shape("glm", layers=1, kv_heads=1, head_dim=16, bias=False, tied=True),
    "glm4": Shape("glm4", heads=6, kv_heads=3, bias=False),
    "glm4-whole-rotary": Shape("glm4", layers=2, heads=4, kv_heads=4, head_dim=24, partial_rotary=1.0),
    "glm4v": Shape("glm4v"),
    "glm4v-tied": Shape(
        "glm4v", layers=1, heads=2, kv_heads=1, head_dim=64, tied=True, mrope=(4, 6, 6), grid=(4, 4), vision_bias=True
    ),
}


def build(shape: Shape, seed: int = 0) -> PreTrainedModel:
    """The model in fp32, with weights large enough for every part to matter."""
    torch.manual_seed(seed)
    return randomize(_glm4v(shape) if shape.family == "glm4v" else _glm(shape))


def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model weights large enough for every part to matter."""
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.rand_like(parameter) * 1.5 + 0.25)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


def config_of(folder: Path) -> str:
    """A checkpoint's config, as a `TraceRequest` takes it."""
    return (folder / "config.json").read_text()


def save(shape: Shape, folder: Path) -> PreTrainedModel:
    """The same, written as a checkpoint."""
    model = build(shape)
    model.save_pretrained(folder)
    return model


def _text(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": 160,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }


def _rope(shape: Shape) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": shape.partial_rotary}


def _glm(shape: Shape) -> PreTrainedModel:
    name = {"glm": "Glm", "glm4": "Glm4"}[shape.family]
    config = getattr(transformers, f"{name}Config")(
        **_text(shape),
        head_dim=shape.head_dim,
        attention_bias=shape.bias,
        tie_word_embeddings=shape.tied,
        rope_parameters=_rope(shape),
        eos_token_id=1,
    )
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    return model


def _glm4v(shape: Shape) -> PreTrainedModel:
    config = transformers.Glm4vConfig(
        text_config={**_text(shape), "rope_parameters": {**_rope(shape), "mrope_section": list(shape.mrope)}},
        vision_config={
            "depth": 2,
            "hidden_size": 48,
            "num_heads": 3,
            "out_hidden_size": shape.hidden,
            "intermediate_size": 72,
            "image_size": 112,
            "patch_size": 14,
            "attention_bias": shape.vision_bias,
        },
        image_token_id=250,
        video_token_id=251,
        image_start_token_id=252,
        image_end_token_id=253,
        video_start_token_id=254,
        video_end_token_id=255,
        tie_word_embeddings=shape.tied,
    )
    return transformers.Glm4vForConditionalGeneration(config)
