"""Keys of a config.json that mean something; a note names those that are not honoured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from edgeglm.export.families.registry import encoder_specs

# Honoured, beside the keys of encoders: the traced block and the description of the family are built from them by
# transformers' own class.
COMPUTED = {
    "text": {
        "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
        "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "original_max_position_embeddings",
        "partial_rotary_factor", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
        "tie_word_embeddings", "vocab_size",
    },
    "model": {"text_config", "tie_word_embeddings"},
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
    parts: dict[str, AbstractSet[str]] = {"text_config": COMPUTED["text"]}
    own = set(COMPUTED["model" if "text_config" in config else "text"])
    for encoder in encoder_specs():
        parts[encoder.config] = encoder.keys
        own |= {encoder.config, *encoder.more_keys} if "text_config" in config else set()
    yield from config.keys() - own - known
    for part, keys in parts.items():
        if isinstance(config.get(part), Mapping):
            yield from (f"{part}.{key}" for key in config[part].keys() - keys - known)
