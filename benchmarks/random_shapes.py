"""Configs of real shapes, and the names and shapes of their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]

TRANSFORMERS_VERSION = "5.23.0"
DEMO = json.loads((Path(__file__).parents[1] / "export/demo/checkpoint/config.json").read_bytes())


def glm4_config(
    *, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int, tied: bool
) -> dict[str, Any]:
    """The config.json of a Glm4ForCausalLM whose heads have 128 channels."""
    return {
        "architectures": ["Glm4ForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": [vocab - 1],
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": 32768,
        "model_type": "glm4",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": vocab - 1,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "transformers_version": TRANSFORMERS_VERSION,
        "use_cache": True,
        "vocab_size": vocab,
    }


# transformers' defaults for both towers are those of GLM-4.1V-9B, which AutoGLM-Phone-9B is trained from.
AUTOGLM_PHONE_9B: dict[str, Any] = {
    "architectures": ["Glm4vForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_end_token_id": 151340,
    "image_start_token_id": 151339,
    "image_token_id": 151343,
    "model_type": "glm4v",
    "text_config": {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 13696,
        "max_position_embeddings": 65536,
        "model_type": "glm4v_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "pad_token_id": 151329,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "mrope_section": [8, 12, 12],
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "rope_type": "default",
        },
        "use_cache": True,
        "vocab_size": 151552,
    },
    "tie_word_embeddings": False,
    "transformers_version": TRANSFORMERS_VERSION,
    "video_end_token_id": 151342,
    "video_start_token_id": 151341,
    "video_token_id": 151344,
    "vision_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "depth": 24,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "image_size": 336,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 13696,
        "model_type": "glm4v_vision",
        "num_heads": 12,
        "out_hidden_size": 4096,
        "patch_size": 14,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


def glm4v_config(text: Mapping[str, Any], vision: Mapping[str, Any], **rest: object) -> dict[str, Any]:
    """The config.json of AutoGLM-Phone's architecture with other extents."""
    config = copy.deepcopy(AUTOGLM_PHONE_9B)
    config["text_config"] |= text
    config["vision_config"] |= vision
    return config | rest


CONFIGS: dict[str, dict[str, Any]] = {
    "autoglm-phone-9b": AUTOGLM_PHONE_9B,
    # The decoder of glm4-300m with M-RoPE, a small tower, and the tokens of the demo's tokenizer.
    "glm4v-300m": glm4v_config(
        {"hidden_size": 1024, "intermediate_size": 2432, "num_attention_heads": 8, "num_hidden_layers": 24}
        | {name: DEMO["text_config"][name] for name in ("eos_token_id", "pad_token_id")}
        | {"vocab_size": 32000},
        {"depth": 2, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 1024},
        **{name: token for name, token in DEMO.items() if name.endswith("_token_id")},
    ),
    "glm4-3b": glm4_config(hidden=2560, layers=28, heads=20, kv_heads=4, intermediate=8192, vocab=151552, tied=False),
    # Tied, as models of this size are: its lm_head is the embedding.
    "glm4-1b": glm4_config(hidden=2048, layers=24, heads=16, kv_heads=2, intermediate=4608, vocab=151552, tied=True),
    "glm4-300m": glm4_config(hidden=1024, layers=24, heads=8, kv_heads=2, intermediate=2432, vocab=32000, tied=False),
    # As many query heads on a key head as AutoGLM-Phone has.
    "glm4-200m-32-heads": glm4_config(
        hidden=1024, layers=8, heads=32, kv_heads=2, intermediate=2432, vocab=32000, tied=False
    ),
}


def shape_config(shape: str, layers: int | None = None) -> dict[str, Any]:
    """The config of a named shape, with another number of decoder layers if given."""
    config = copy.deepcopy(CONFIGS[shape])
    if layers is not None:
        config.get("text_config", config)["num_hidden_layers"] = layers
    return config


def weight_shapes(config: Mapping[str, Any]) -> Shapes:
    """Every weight's name and shape, in the order of transformers' ``state_dict``."""
    vision = _vision_shapes(config["vision_config"]) if "vision_config" in config else {}
    text = config.get("text_config", config)
    prefix = "model.language_model." if vision else "model."
    embedding = (text["vocab_size"], text["hidden_size"])
    shapes = vision | {f"{prefix}embed_tokens.weight": embedding}
    # Glm4v has a bias on q, k and v, and no option for it.
    biased = text.get("attention_bias", True)
    for layer in range(text["num_hidden_layers"]):
        for name, shape in _decoder_layer(text).items():
            if biased or not name.endswith(".bias"):
                shapes[f"{prefix}layers.{layer}.{name}"] = shape
    shapes[f"{prefix}norm.weight"] = (text["hidden_size"],)
    return shapes if config["tie_word_embeddings"] else shapes | {"lm_head.weight": embedding}


def _decoder_layer(text: Mapping[str, Any]) -> Shapes:
    hidden, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head_dim = text.get("head_dim", hidden // heads)
    q, kv = heads * head_dim, text["num_key_value_heads"] * head_dim
    return {
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.q_proj.bias": (q,),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (hidden, q),
        "mlp.gate_up_proj.weight": (2 * inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "post_self_attn_layernorm.weight": (hidden,),
        "post_mlp_layernorm.weight": (hidden,),
    }


def _vision_shapes(vision: Mapping[str, Any]) -> Shapes:
    hidden, patch, merge = vision["hidden_size"], vision["patch_size"], vision["spatial_merge_size"]
    # A block's MLP is as wide as the output; intermediate_size is the merger's width.
    out, inner = vision["out_hidden_size"], vision["intermediate_size"]
    shapes: Shapes = {
        "embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2, hidden),
        "patch_embed.proj.weight": (hidden, vision["in_channels"], vision["temporal_patch_size"], patch, patch),
        "patch_embed.proj.bias": (hidden,),
    }
    for block in range(vision["depth"]):
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in _vision_block(hidden, out).items()}
    shapes |= {
        "merger.proj.weight": (out, out),
        "merger.post_projection_norm.weight": (out,),
        "merger.post_projection_norm.bias": (out,),
        "merger.gate_proj.weight": (inner, out),
        "merger.up_proj.weight": (inner, out),
        "merger.down_proj.weight": (out, inner),
        "post_conv_layernorm.weight": (hidden,),
        "downsample.weight": (out, hidden, merge, merge),
        "downsample.bias": (out,),
        "post_layernorm.weight": (hidden,),
    }
    return {f"model.visual.{name}": shape for name, shape in shapes.items()}


def _vision_block(hidden: int, inner: int) -> Shapes:
    return {
        "norm1.weight": (hidden,),
        "norm2.weight": (hidden,),
        "attn.qkv.weight": (3 * hidden, hidden),
        "attn.proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
