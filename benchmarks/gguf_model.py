"""Write a GLM-4 checkpoint as a GGUF file for llama.cpp: ``python benchmarks/gguf_model.py CHECKPOINT Q4_0 FILE``.

Only for timing: of a GLM-4.1V the file has the decoder. It has the words of the checkpoint's tokenizer.json, and none
without one. Names and keys are those of the ``gguf`` package's ``glm4`` architecture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_mlp_layernorm",
}
OUTER = {"token_embd": "embed_tokens", "output_norm": "norm"}


def write(checkpoint: Path, kind: str, file: Path) -> None:
    """Quantize every matrix to `kind`, a name of gguf.GGMLQuantizationType; vectors stay in fp32."""
    whole = json.loads((checkpoint / "config.json").read_text())
    config, inside = (whole, "model") if "text_config" not in whole else (whole["text_config"], "model.language_model")
    writer = gguf.GGUFWriter(file, "glm4")
    rope, head = config["rope_parameters"], config["hidden_size"] // config["num_attention_heads"]
    head = config.get("head_dim", head)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(head * rope["partial_rotary_factor"]))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_words(writer, checkpoint / "tokenizer.json", config["vocab_size"])
    names = {ours: f"{inside}.{theirs}" for ours, theirs in OUTER.items()} | {"output": "lm_head"}
    names |= {
        f"blk.{layer}.{ours}": f"{inside}.layers.{layer}.{theirs}"
        for layer in range(config["num_hidden_layers"])
        for ours, theirs in LAYER.items()
    }
    quantization = gguf.GGMLQuantizationType[kind]
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        present = set(weights.keys())
        for ours, theirs in names.items():
            for end in ("weight", "bias"):
                if f"{theirs}.{end}" not in present:
                    continue
                values = weights.get_tensor(f"{theirs}.{end}").float().numpy()
                stored = gguf.quantize(values, quantization) if values.ndim == 2 else values.astype(np.float32)
                kept = quantization if values.ndim == 2 else None
                writer.add_tensor(f"{ours}.{end}", stored, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_words(writer: gguf.GGUFWriter, file: Path, count: int) -> None:
    """Add so many words, those behind the tokenizer's own unused; a server of llama.cpp needs some."""
    if not file.exists():
        writer.add_tokenizer_model("no_vocab")
        return
    tokenizer = json.loads(file.read_text())
    special = {word["id"]: word["content"] for word in tokenizer["added_tokens"]}
    words = special | {number: word for word, number in tokenizer["model"]["vocab"].items()}
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(count)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    writer.add_token_list([words.get(number, f"[unused{number}]") for number in range(count)])
    writer.add_token_types([kind if number in words else gguf.TokenType.UNUSED for number, kind in enumerate(kinds)])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(json.loads(file.with_name("generation_config.json").read_text())["eos_token_id"][0])


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
