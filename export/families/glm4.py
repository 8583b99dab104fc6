"""GLM-4-0414 (`Glm4ForCausalLM`): sandwich norms around attention and MLP."""

from __future__ import annotations

from typing import Any

from edgeglm.export.families.text_family import describe_decoder
from edgeglm.export.model import Model

ARCHITECTURE = "Glm4ForCausalLM"
MODELING = "transformers.models.glm4.modeling_glm4"
DECODER_BLOCK = "Glm4DecoderLayer"
ROTARY = "Glm4RotaryEmbedding"


def describe(config: Any, grid: tuple[int, int] | None) -> Model:
    """Return the model that a `Glm4Config` describes; it has no pictures, so `grid` is not used."""
    return Model(ARCHITECTURE, "glm4", describe_decoder(config, "model", config.tie_word_embeddings))
