"""GLM-Edge and glm-4-9b-hf (`GlmForCausalLM`)."""

from __future__ import annotations

from typing import Any

from edgeglm.export.families.text_family import describe_decoder
from edgeglm.export.model import Model

ARCHITECTURE = "GlmForCausalLM"
MODELING = "transformers.models.glm.modeling_glm"
DECODER_BLOCK = "GlmDecoderLayer"
ROTARY = "GlmRotaryEmbedding"


def describe(config: Any, grid: tuple[int, int] | None) -> Model:
    """Return the model that a `GlmConfig` describes; it has no pictures, so `grid` is not used."""
    return Model(ARCHITECTURE, "glm", describe_decoder(config, "model", config.tie_word_embeddings))
