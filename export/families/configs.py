"""A checkpoint's config in the form that transformers 5 reads, whichever version of it wrote the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgeglm.export.families.glm4v import CONFIG

HEAD = "lm_head.weight"
# What GLM-4.1V's own config keeps at the top (transformers 5.23, Glm4vConfig); whatever else an old file has there are
# settings of the text model.
GLM4V_KEYS = {
    "architectures", "auto_map", "image_end_token_id", "image_start_token_id", "image_token_id", "model_type",
    "transformers_version", "video_end_token_id", "video_start_token_id", "video_token_id",
    CONFIG,
}  # fmt: skip


def normalize(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Return a config.json as transformers is to be given it; `tensors` are the names of the checkpoint's weights.

    - GLM-4.1V's first release has no ``text_config``: transformers 4.53 took the settings at the top for it, and
      transformers 5 would take its own defaults.
    - A head of its own is used even where ``tie_word_embeddings`` says that there is none, as transformers 5 does
      (`PreTrainedModel.tie_weights`: both are in the checkpoint, so they are not tied).
    - What it says of quantization is left out: edgeglm reads quantized weights as plain ones.
    - The epsilon of a norm may be a whole number, such as 0, for which transformers 5 wants a fraction.
    """
    found = _plain(config)
    for name in ("text_config", CONFIG):
        if isinstance(part := found.get(name), Mapping):
            found[name] = _plain(part)
    if found.get("model_type") == "glm4v" and found.get("text_config") is None:
        moved = {key: value for key, value in found.items() if key not in GLM4V_KEYS}
        tied = bool(found.get("tie_word_embeddings"))
        found = {key: value for key, value in found.items() if key in GLM4V_KEYS}
        found |= {"text_config": moved, "tie_word_embeddings": tied}
    if HEAD in tensors:
        found["tie_word_embeddings"] = False
        text = found.get("text_config")
        if isinstance(text, Mapping) and text.get("tie_word_embeddings"):
            found["text_config"] = {**text, "tie_word_embeddings": False}
    return found


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in part.items() if key != "quantization_config"}
    if type(epsilon := found.get("rms_norm_eps")) is int and epsilon < 1 << 53:
        found["rms_norm_eps"] = float(epsilon)
    return found


def embedding_in_head(config: Mapping[str, Any], tensors: Collection[str]) -> str | None:
    """Return the name of an embedding that the head stands for: they are tied, and the head alone was saved.

    transformers 5 ties either to the one that is there (`PreTrainedModel.tie_weights`).
    """
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings") or (isinstance(text, Mapping) and text.get("tie_word_embeddings"))
    name = f"model.{'language_model.' if config.get('model_type') == 'glm4v' else ''}embed_tokens.weight"
    return name if tied and HEAD in tensors and name not in tensors else None
