"""Recognize a folder that is not a usable checkpoint, and name the way on, before its parts are judged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.files import shown
from edgeglm.export.families.registry import FAMILIES, image_key

# A file that only folders of one kind have -> what they are, and what to do.
KINDS = {
    "model_index.json": ("is a pipeline of diffusers, not a language model", "give a GLM checkpoint"),
    "config_sentence_transformers.json": (
        "is a model of sentence-transformers, which makes embeddings and no text",
        "give a GLM checkpoint",
    ),
    "openvino_model.xml": ("holds a model of OpenVINO", "give the checkpoint that it was made from"),
    "tekken.json": ("is a checkpoint in Mistral's own format", "give a GLM checkpoint"),
}
# Models in formats that others read, where a folder has no safetensors.
FORMATS = {
    "gguf": "GGUF, the format of llama.cpp",
    "onnx": "ONNX",
    "tflite": "TFLite",
    "task": "MediaPipe's format",
    "litertlm": "LiteRT-LM's format",
    "engine": "TensorRT",
    "h5": "TensorFlow's format",
    "msgpack": "Flax's format",
    "mnn": "MNN",
    "nemo": "NeMo's format",
    "xml": "OpenVINO",
    "npz": "MLX's first format",
}
ORIGINAL = "give the Hugging Face checkpoint that it was made from, with config.json and safetensors"
# The repositories whose code transformers has taken over, and those with the weights in its form.
SISTERS = {
    "glm-4-9b-chat-1m": "THUDM/glm-4-9b-chat-1m-hf",
    "glm-4-9b-chat": "THUDM/glm-4-9b-chat-hf",
    "glm-4-9b": "THUDM/glm-4-9b-hf",
}
OTHER_VISION = "use GLM-4.1V (zai-org/GLM-4.1V-9B-Thinking) or AutoGLM-Phone for images"
INCOMPLETE = ("*.incomplete", ".cache/huggingface/download/**/*.incomplete", "../../blobs/*.incomplete")
AGAIN_ALL = "download the whole checkpoint again"
OTHER = "rest"
# What programs put before the names of the weights when they save a model that is wrapped.
WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "_fsdp_wrapped_module.", "model.base_model.model.")


def check_kind(folder: Path) -> None:
    """Refuse a folder that is something else than a checkpoint.

    Raises:
        UsageError: It is a bundle of edgeglm.
        UnsupportedError: It is an adapter, or of a library or format that is not read.
        DamagedFileError: A download into it is not whole, and the config is missing.
    """
    if (folder / "manifest.json").is_file() and (folder / "run.pyz").is_file():
        raise UsageError(folder, "is a bundle of edgeglm already", "run it with edgeglm run, or give the checkpoint")
    has_config, has_weights = (folder / "config.json").is_file(), any(folder.glob("*.safetensors*"))
    if (folder / "adapter_config.json").is_file() and not (has_config and any(folder.glob("model*.safetensors*"))):
        raise UnsupportedError(
            folder, f"is an adapter{_base(folder)}, not a model", "give the model, and this folder by --adapter"
        )
    for name, (why, remedy) in KINDS.items():
        if (folder / name).is_file():
            raise UnsupportedError(folder, why, remedy)
    if has_config and has_weights:
        return
    for suffix, name in FORMATS.items():
        for file in sorted(folder.glob(f"*.{suffix}")):
            if not file.name.startswith("."):
                raise UnsupportedError(file, f"is a model in {name}, which is not read", ORIGINAL)
    if not has_weights and (unfinished := _unfinished(folder)):
        raise DamagedFileError(folder, f"its download is not whole: {unfinished} is there", "download it again")


def check_config_kind(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse the config of a model that transformers' own GLM classes do not compute.

    Raises:
        UnsupportedError: Its code is in its repository, its vision is not GLM-4.1V's, or it is quantized by MLX.
    """
    name, kind = _first(config.get("architectures")), config.get("model_type")
    quantized = config.get("quantization")
    if isinstance(quantized, Mapping) and "bits" in quantized and "group_size" in quantized:
        raise UnsupportedError(file, "is of a model that MLX quantized", "use the original, unquantized checkpoint")
    key = image_key(config)
    if kind == "chatglm" or name.startswith("ChatGLM"):
        what = f"{shown(name) or 'ChatGLM'}{' with vision' if key else ''}"
        why = f"is of {what}, which runs code of its own repository, and edgeglm does not"
        raise UnsupportedError(file, why, _sister(file, config, key))
    family = FAMILIES.get(name)
    if family and family.encoder("image") is None and key:
        why = f"has a {key}, and transformers' {name} takes no images"
        if kind == "glm":
            why = "is of GLM-Edge-V, whose vision is not supported: it runs code of its own repository"
        raise UnsupportedError(file, why, f"{OTHER_VISION}, or the text model of the family")
    if name not in FAMILIES and _class_of(kind) and name.startswith("Glm"):
        raise UnsupportedError(
            file, f"names {shown(name)}, which has no head that makes text", f"take the model of {_class_of(kind)}"
        )
    if name and name not in FAMILIES and config.get("auto_map"):
        why = f"{shown(name)} runs code of its own repository (auto_map), which edgeglm does not"
        raise UnsupportedError(file, why, f"use one of {', '.join(FAMILIES)}")


def check_shards(index: Path, shards: Iterable[Path]) -> None:
    """Raise DamagedFileError where files of an index are missing, with the likely reason."""
    files = list(shards)
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return
    unfinished = _unfinished(index.parent)
    why = f"is missing, and {len(missing)} of the {len(files)} files that the index names are"
    remedy = f"{unfinished} is there: the download goes on, or broke off; start it again" if unfinished else AGAIN_ALL
    raise DamagedFileError(missing[0], why, remedy)


def missing_weight(weights: Path, name: str, names: Iterable[str]) -> EdgeglmError:
    """Return the error for a weight that is not there; `names` are those that are. It says what likely happened."""
    found = list(names)
    part = _place(name)
    where, missing = f"{weights}: {name}", "is missing, and the model needs it"
    for wrapper in WRAPPERS:
        if any(weight.startswith(wrapper) for weight in found):
            why = f"{missing}: names begin with {wrapper}, as of a model that was saved inside a wrapper"
            return DamagedFileError(where, why, "save the model itself again, with its own save_pretrained")
    if found and not any(_place(weight) == part for weight in found):
        if part == "head":
            why = f"{missing}: it was saved without its head, or tie_word_embeddings should be true in config.json"
            return DamagedFileError(where, why, "take a checkpoint of the whole model")
        have = ", ".join(sorted({_place(weight) for weight in found if _place(weight) != OTHER})) or "others"
        why = f"{missing}: no weight of the {part} is there, only of the {have}"
        return DamagedFileError(where, why, "take a checkpoint of the whole model, or the config that belongs to this")
    if (layer := _layer(name)) is not None and (last := _last_layer(name, found)) is not None and layer > last:
        why = f"{missing}: config.json has more layers than the {last + 1} of the weights"
        return DamagedFileError(where, why, "take config and weights of one model")
    return DamagedFileError(where, missing, AGAIN_ALL)


def _place(name: str) -> str:
    """Return which part of a model a weight belongs to."""
    if re.search(r"(^|\.)(visual|vision\w*|vit)\.", name):
        return "vision tower"
    if name.endswith("embed_tokens.weight"):
        return "embedding"
    if name.startswith("lm_head."):
        return "head"
    return "decoder" if re.search(r"(^|\.)(layers\.\d+|norm)\.", name) else OTHER


def _layer(name: str) -> int | None:
    match = re.search(r"\.(?:layers|blocks)\.(\d{1,6})\.", name)
    return int(match[1]) if match else None


def _last_layer(name: str, names: Iterable[str]) -> int | None:
    part = _place(name)
    return max(
        (layer for weight in names if _place(weight) == part and (layer := _layer(weight)) is not None), default=None
    )


def _unfinished(folder: Path) -> str | None:
    with suppress(OSError, ValueError):
        return next((file.name for file in chain.from_iterable(map(folder.glob, INCOMPLETE))), None)
    return None


def _base(folder: Path) -> str:
    with suppress(OSError, ValueError):
        base = json.loads((folder / "adapter_config.json").read_bytes()[: 1 << 20]).get("base_model_name_or_path")
        return f" of {shown(base)}" if isinstance(base, str) and base else ""
    return ""


def _first(names: object) -> str:
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _class_of(kind: object) -> str | None:
    return {family.name: name for name, family in FAMILIES.items()}.get(kind) if isinstance(kind, str) else None


def _sister(file: Path, config: Mapping[str, Any], vision: str | None) -> str:
    """Return the repository with the same weights for transformers' own classes, if there is one."""
    if vision is not None:
        return OTHER_VISION
    said = str(config.get("_name_or_path", "")).lower(), file.absolute().parent.name.lower()
    for name in said:
        for old, sister in SISTERS.items():
            if old in name:
                return f"use {sister}, the same weights for transformers' own classes"
    return "use a GLM model for transformers' own classes, such as THUDM/glm-4-9b-chat-hf"
