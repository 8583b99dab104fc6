"""GLM-4.1V, AutoGLM-Phone (`Glm4vForConditionalGeneration`): a GLM-4 decoder with M-RoPE and a vision tower."""

from __future__ import annotations

from typing import Any

from edgeglm.errors import UnsupportedError
from edgeglm.export.families.rope import FILE, UNCHANGED
from edgeglm.export.families.spec import DecoderSpec, EncoderSpec, Extent, Family
from edgeglm.export.model import Grid, Vision

PREFIX = "model.visual."
BLOCKS = f"{PREFIX}blocks.{{layer}}."
EXTENTS = (
    Extent("hidden_size", ".visual.patch_embed.proj.weight", 0),
    Extent("in_channels", ".visual.patch_embed.proj.weight", 1),
    Extent("temporal_patch_size", ".visual.patch_embed.proj.weight", 2),
    Extent("patch_size", ".visual.patch_embed.proj.weight", 3),
    Extent("out_hidden_size", ".visual.downsample.weight", 0),
    Extent("spatial_merge_size", ".visual.downsample.weight", 2),
    Extent("intermediate_size", ".visual.merger.down_proj.weight", 1),
    Extent("image_size", ".visual.embeddings.position_embedding.weight", 0, pieces_of="patch_size"),
)
# Channels that are turned at once: a pair by the row of a patch, and one by its column.
AXES = 4
# Under which its config describes the encoder.
CONFIG = "vision_config"
KEYS = frozenset({
    "attention_bias", "depth", "hidden_act", "hidden_size", "image_size", "in_channels", "intermediate_size",
    "num_attention_heads", "num_heads", "num_hidden_layers", "out_hidden_size", "patch_size", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "spatial_merge_size", "temporal_patch_size",
})  # fmt: skip


def _vision(config: Any, grid: Grid | None) -> Vision | None:
    if grid is None:
        return None
    vision = getattr(config, CONFIG)
    if (width := vision.hidden_size // vision.num_heads) % AXES:
        why = f"its {CONFIG} has {width} channels a head, and a position in an image turns {AXES} at once"
        raise UnsupportedError(FILE, why, UNCHANGED)
    return Vision(
        layers=vision.depth,
        hidden=vision.hidden_size,
        heads=vision.num_heads,
        output=vision.out_hidden_size,
        blocks=BLOCKS,
        prefix=PREFIX,
        back=tuple(PREFIX + name for name in ("post_layernorm", "downsample", "merger")),
        patch=vision.patch_size,
        temporal_patch=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        channels=vision.in_channels,
        grid=grid,
        token=config.image_token_id,
        start_token=config.image_start_token_id,
        end_token=config.image_end_token_id,
        position=f"{PREFIX}embeddings.position_embedding.weight",
    )


GLM4V = Family(
    "glm4v",
    "Glm4vForConditionalGeneration",
    "transformers.models.glm4v.modeling_glm4v",
    DecoderSpec(
        "Glm4vTextDecoderLayer",
        "Glm4vTextRotaryEmbedding",
        "pairs",
        positions=32_768,
        prefix="model.language_model",
        # What the rotary embedding falls back to without a setting (transformers 5.23, Glm4vTextRotaryEmbedding).
        mrope_section=(8, 12, 12),
        free_heads=False,
    ),
    (
        EncoderSpec(
            "vision",
            config=CONFIG,
            depth="depth",
            weights=(".visual.",),
            first=f"{PREFIX}patch_embed.proj.weight",
            blocks=BLOCKS,
            tower="edgeglm.export.families.image_tower",
            describe=_vision,
            extents=EXTENTS,
            keys=KEYS,
            more_keys=frozenset({"image_end_token_id", "image_start_token_id", "image_token_id"}),
            divided={"hidden_size": "num_heads"},
        ),
    ),
)
