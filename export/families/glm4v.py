"""GLM-4.1V, AutoGLM-Phone (`Glm4vForConditionalGeneration`): a GLM-4 decoder with M-RoPE and a vision tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeglm.export.families.text_family import describe_decoder
from edgeglm.export.model import Model, Vision

ARCHITECTURE = "Glm4vForConditionalGeneration"
MODELING = "transformers.models.glm4v.modeling_glm4v"
DECODER_BLOCK = "Glm4vTextDecoderLayer"
ROTARY = "Glm4vTextRotaryEmbedding"
VISION = "Glm4vVisionModel"
# What the rotary embedding falls back to without a setting (transformers 5.23, Glm4vTextRotaryEmbedding).
MROPE_SECTION = (8, 12, 12)


def describe(config: Any, grid: tuple[int, int] | None) -> Model:
    """Return the model that a `Glm4vConfig` describes, for pictures of `grid` patches (rows, columns)."""
    decoder = describe_decoder(config.text_config, "model.language_model", config.tie_word_embeddings)
    decoder = replace(decoder, mrope_section=decoder.mrope_section or MROPE_SECTION)
    return Model(ARCHITECTURE, "glm4v", decoder, _vision(config.vision_config, grid) if grid else None)


def _vision(config: Any, grid: tuple[int, int]) -> Vision:
    return Vision(
        layers=config.depth,
        hidden=config.hidden_size,
        heads=config.num_heads,
        output=config.out_hidden_size,
        patch=config.patch_size,
        temporal_patch=config.temporal_patch_size,
        merge=config.spatial_merge_size,
        channels=config.in_channels,
        grid=grid,
        blocks="model.visual.blocks.{layer}.",
        prefix="model.visual.",
    )
