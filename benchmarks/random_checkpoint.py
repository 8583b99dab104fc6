"""Write a random checkpoint of a real shape in little memory: ``python benchmarks/random_checkpoint.py glm4-1b DIR``.

The weights of every layer differ, because engines share equal ones, which would flatter a memory figure.
"""

from __future__ import annotations

import argparse
import copy
import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import BudgetError, EdgeglmError, UsageError
from edgeglm.units import format_size

Shapes = dict[str, tuple[int, ...]]

SHARD_BYTES = 5_000_000_000
# Room for headers, the index and the config.
SLACK_BYTES = 1 << 20
CHUNK = 1 << 22
TRANSFORMERS_VERSION = "5.23.0"


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
        | {"eos_token_id": [1011], "pad_token_id": 1004, "vocab_size": 32000},
        {"depth": 2, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 1024},
        image_start_token_id=1014,
        image_end_token_id=1015,
        image_token_id=1018,
        video_start_token_id=1016,
        video_end_token_id=1017,
        video_token_id=1019,
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


def write_checkpoint(config: Mapping[str, Any], folder: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> int:
    """Write a bfloat16 checkpoint of a config and return the bytes of its weights; a seed gives the same bytes.

    config.json comes last, so that what an interrupt leaves is no checkpoint.

    Raises:
        UsageError: The folder has content.
        BudgetError: The disk is too small; nothing has been written.
    """
    shapes = weight_shapes(config)
    size = sum(map(_nbytes, shapes.values()))
    _check_room(folder, size + SLACK_BYTES)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(shapes, shard_bytes)
    for file, shard in shards.items():
        _write_shard(folder / file, shard, seed)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        index = {"metadata": {"total_parameters": size // 2, "total_size": size}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config)
    return size


def _check_room(folder: Path, needed: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(folder, "exists and is not an empty directory", "name another one")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        why = f"the disk has {format_size(free)} free of the {format_size(needed)} that it takes"
        raise BudgetError(folder, why, "free some, or name another disk")


def _split(shapes: Shapes, shard_bytes: int) -> dict[str, Shapes]:
    """Fill shards in order, each up to the limit, and name them as transformers does."""
    shards: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if shards[-1] and filled + _nbytes(shape) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += _nbytes(shape)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write_shard(file: Path, shapes: Shapes, seed: int) -> None:
    with file.open("wb") as out:
        out.write(header(shapes))
        for name, shape in shapes.items():
            for chunk in _values(name, shape, seed):
                out.write(chunk.data)
        # Neither writing back nor a warm cache should enter what is measured next.
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def header(shapes: Shapes) -> bytes:
    """The beginning of a safetensors file; a plan reads no more of it."""
    members: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _nbytes(shape)
        members[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(members, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _values(name: str, shape: tuple[int, ...], seed: int) -> Iterator[NDArray[np.uint16]]:
    """Yield a tensor's values in chunks: normal, of mean 1 for a norm and 0 for all else."""
    bits = np.random.Philox(np.random.SeedSequence([seed, *name.encode()]))
    if len(shape) == 1:
        table = _normal_table(float("norm" in name and name.endswith(".weight")), 0.02)
    else:
        table = _normal_table(0.0, 1 / math.sqrt(math.prod(shape[1:])))
    size = math.prod(shape)
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        yield table[bits.random_raw(-(-count // 4)).view(np.uint16)[:count]]


QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)])


def _normal_table(mean: float, deviation: float) -> NDArray[np.uint16]:
    """Return 65536 equally likely values in bfloat16, so that 16 random bits are one normal value."""
    wide = (mean + deviation * QUANTILES).astype(np.float32).view(np.uint32)
    return ((wide + 0x8000) >> 16).astype(np.uint16)


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _peak_rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Write the checkpoint that the command line names; a failure is one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=CONFIGS)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--layers", type=_count, help="decoder layers, instead of the shape's own")
    parser.add_argument("--seed", type=_count, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        size = write_checkpoint(shape_config(arguments.shape, arguments.layers), arguments.folder, arguments.seed)
    except EdgeglmError as error:
        print(f"random_checkpoint: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(
            f"random_checkpoint: {arguments.folder}: cannot be written: {error.strerror}; remove what is there",
            file=sys.stderr,
        )
        return BudgetError.exit_code if error.errno == errno.ENOSPC else UsageError.exit_code
    seconds = time.monotonic() - start
    speed = f"{seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s, peak RSS {format_size(_peak_rss())}"
    print(f"{arguments.folder}: {size // 2 / 1e6:.0f}M parameters, {format_size(size)} in {speed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
