"""The untrained demo checkpoint: tokenizer, processor settings, configuration and initial weights.

The shape is GLM-4.1V's in small. The initialization is what makes it learn from scratch on a CPU:
Linear weights at 1/sqrt(fan_in), embeddings at 0.5, post-norms at 0.3, a sin-cos position table.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, PreTrainedTokenizerFast

from edgeglm.export.demo.screens import HEIGHT, WIDTH
from edgeglm.export.demo.vocabulary import drop_merges, train_bpe

PATCH, MERGE = 14, 2
VOCABULARY = 4096
WINDOW = 8192  # holds Open-AutoGLM's Chinese system prompt and ten steps
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# GLM-4.1V's own special tokens, in its order.
SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|image|>", "<|video|>",
)  # fmt: skip
# Single tokens that stay in the decoded text.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# What ends an answer: GLM-4.1V's own four. An end token is not text, so that Open-AutoGLM reads no ``</answer>``.
ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>", "</answer>")
CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>{{ '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] in ('image', 'image_url') -%}<|begin_of_image|><|image|><|end_of_image|>"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{{ '\n' }}{%- endif -%}"
)


def build_tokenizer(samples: int = 8000) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of VOCABULARY entries, trained on sampled steps, without the merges that do harm."""
    bpe = drop_merges(train_bpe(VOCABULARY - len(SPECIAL) - len(TAGS), samples), samples)
    bpe.add_special_tokens(list(SPECIAL))
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(tokenizer: PreTrainedTokenizerFast) -> Glm4vConfig:
    """Return the demo's `Glm4vConfig`: 4 vision and 4 decoder layers, grouped-query attention, partial M-RoPE."""
    token = tokenizer.get_vocab()
    return Glm4vConfig(
        image_token_id=token["<|image|>"],
        video_token_id=token["<|video|>"],
        image_start_token_id=token["<|begin_of_image|>"],
        image_end_token_id=token["<|end_of_image|>"],
        video_start_token_id=token["<|begin_of_video|>"],
        video_end_token_id=token["<|end_of_video|>"],
        tie_word_embeddings=False,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": WINDOW,
            "pad_token_id": token["<|endoftext|>"],
            "eos_token_id": [token[name] for name in ENDS],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": 160,
            "num_heads": 5,
            "out_hidden_size": 256,
            "intermediate_size": 512,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "image_size": HEIGHT,
        },
    )


def build_model(config: Glm4vConfig, seed: int = 0) -> Glm4vForConditionalGeneration:
    """Return the freshly initialized model in fp32."""
    torch.manual_seed(seed)
    model = Glm4vForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialize(name, parameter)
        positions = model.model.visual.embeddings.position_embedding.weight
        positions.copy_(_sin_cos_table(HEIGHT // PATCH, positions.shape[1]))
    generation, text = model.generation_config, config.get_text_config()
    generation.eos_token_id = text.eos_token_id
    generation.pad_token_id = text.pad_token_id
    generation.do_sample = False
    return model


def _initialize(name: str, parameter: nn.Parameter) -> None:
    if name.endswith("embed_tokens.weight"):
        parameter.normal_(0, 0.5)
    elif name == "lm_head.weight":
        parameter.normal_(0, 0.02)
    elif name.endswith(("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")):
        parameter.fill_(0.3)
    elif parameter.ndim >= 2 and "position_embedding" not in name:
        into_residual = name.endswith(("o_proj.weight", "attn.proj.weight")) or (
            "blocks" in name and "down_proj" in name
        )
        parameter.normal_(0, parameter[0].numel() ** -0.5 * (0.5 if into_residual else 1.0))


def _sin_cos_table(side: int, width: int) -> Tensor:
    """Return (side * side, width): sines and cosines of the row in the first half, of the column in the second."""
    frequencies = 1 / (30 ** (torch.arange(width // 4) / (width // 4)))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).reshape(side * side, width)


def save(model: Glm4vForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a plain Hugging Face checkpoint: weights in the model's dtype, tokenizer, processor settings."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = 2 * WIDTH * HEIGHT  # the processor counts both frames of a temporal patch
    settings = {
        "image_processor_type": "Glm4vImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
