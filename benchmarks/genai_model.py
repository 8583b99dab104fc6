"""Build onnxruntime-genai's model of a checkpoint's shape: ``python benchmarks/genai_model.py CHECKPOINT int4 DIR``.

Only for timing: its builder has no GLM-4, so it gets a Llama with the same matrices, which leaves out two norms a layer
and turns all channels of a head; that is a little less work than GLM-4's. Of a GLM-4.1V it gets the decoder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from edgeglm.export.checkpoint.locate import DEMO

KEPT = (
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


def build(checkpoint: Path, precision: str, folder: Path) -> None:
    """Write a Llama and have it built; INT4 and INT8 in the builder's blocks of 32, activations in INT8 as ours are."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as llama:
        write_llama(checkpoint, Path(llama))
        builder = ["-m", "onnxruntime_genai.models.builder", "-i", llama, "-o", str(folder), "-p", precision]
        subprocess.run(
            [sys.executable, *builder, "-e", "cpu", "--extra_options", "int4_accuracy_level=4"],
            check=True,
            stdout=sys.stderr,
        )


def write_llama(checkpoint: Path, folder: Path) -> None:
    """The checkpoint under Llama's names, with the demo's tokenizer, which the builder insists on copying."""
    whole = json.loads((checkpoint / "config.json").read_text())
    theirs = {**whole, **whole.get("text_config", {})}
    theirs.setdefault("head_dim", theirs["hidden_size"] // theirs["num_attention_heads"])
    config = {key: theirs[key] for key in KEPT} | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights: dict[str, torch.Tensor] = {}
    for stored, tensor in load_file(checkpoint / "model.safetensors").items():
        name = stored.replace("model.language_model.", "model.")
        if name.startswith("model.visual."):
            continue
        if "gate_up_proj" in name:
            for half, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                weights[name.replace("gate_up_proj", half)] = rows.contiguous()
        elif "post_self_attn_layernorm" not in name and "post_mlp_layernorm" not in name:
            weights[name] = tensor
            if name.endswith("q_proj.bias"):  # Llama's bias is on all four projections or on none
                weights[name.replace("q_proj", "o_proj")] = torch.zeros(theirs["hidden_size"], dtype=tensor.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for file in DEMO.glob("token*"):
        shutil.copy(file, folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
