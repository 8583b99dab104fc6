"""Keys of a config.json that mean something; a note names those that are not honoured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Honoured: the traced block and the description of the family are built from them by transformers' own class.
COMPUTED = {
    "text": {
        "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
        "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "original_max_position_embeddings",
        "partial_rotary_factor", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
        "tie_word_embeddings", "vocab_size",
    },
    "vision": {
        "attention_bias", "depth", "hidden_act", "hidden_size", "image_size", "in_channels", "intermediate_size",
        "num_attention_heads", "num_heads", "num_hidden_layers", "out_hidden_size", "patch_size", "rms_norm_eps",
        "rope_parameters", "rope_scaling", "rope_theta", "spatial_merge_size", "temporal_patch_size",
    },
    "model": {
        "image_end_token_id", "image_start_token_id", "image_token_id", "text_config", "tie_word_embeddings",
        "vision_config",
    },
}  # fmt: skip
# Say nothing of what a bundle computes, with the reason.
SILENT = {
    "architectures": "names the class, which is checked",
    "model_type": "names the class too",
    "auto_map": "is for code that is not run",
    "transformers_version": "is of the program that wrote the file",
    "_name_or_path": "is of the program that wrote the file",
    "_attn_implementation_autoset": "is of the program that wrote the file",
    "name_or_path": "is of the program that wrote the file",
    "torchscript": "is of the program that wrote the file",
    "dtype": "is of the weights, whose files say it",
    "torch_dtype": "is of the weights, whose files say it",
    "quantization_config": "is read with the weights",
    "compression_config": "is read with the weights",
    "initializer_range": "is for training",
    "attention_dropout": "is for training",
    "hidden_dropout": "is for training",
    "resid_pdrop": "is for training",
    "embd_pdrop": "is for training",
    "output_attentions": "is for training",
    "output_hidden_states": "is of transformers' result",
    "return_dict": "is of transformers' result",
    "use_cache": "is of transformers' result",
    "is_encoder_decoder": "is of other models",
    "is_decoder": "is of other models",
    "id2label": "is for classification",
    "label2id": "is for classification",
    "problem_type": "is for classification",
    "chunk_size_feed_forward": "changes memory alone",
    "bos_token_id": "is for generating, and read with generation_config.json",
    "eos_token_id": "is for generating, and read with generation_config.json",
    "pad_token_id": "is for generating, and read with generation_config.json",
    "video_token_id": "is of videos, which a bundle does not take",
    "video_start_token_id": "is of videos, which a bundle does not take",
    "video_end_token_id": "is of videos, which a bundle does not take",
    "attn_implementation": "chooses a kernel of transformers",
    "_attn_implementation": "chooses a kernel of transformers",
    "pretraining_tp": "is for training, and transformers 5 does not use it",
    "bos_token": "is of the tokenizer",
    "eos_token": "is of the tokenizer",
    "tokenizer_class": "is of the tokenizer",
    "quantization": "is read with the weights",
}


def unknown_keys(config: Mapping[str, Any], generation: Iterable[str] = ()) -> list[str]:
    """Return the keys that neither transformers' class for the model nor edgeglm knows, with the part that they are in.

    Args:
        config: In transformers 5's form.
        generation: Keys of generation_config.json, which an older config.json may have.
    """
    return sorted(_unknown(config, {*SILENT, *generation}))


def _unknown(config: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    parts = {"text_config": "text", "vision_config": "vision"}
    own = COMPUTED["model" if "text_config" in config else "text"]
    yield from config.keys() - own - known
    for part, kind in parts.items():
        if isinstance(config.get(part), Mapping):
            yield from (f"{part}.{key}" for key in config[part].keys() - COMPUTED[kind] - known)
