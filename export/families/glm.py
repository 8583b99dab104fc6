"""GLM-Edge and glm-4-9b-hf (`GlmForCausalLM`)."""

from __future__ import annotations

from edgeglm.export.families.spec import DecoderSpec, Family

GLM = Family(
    "glm",
    "GlmForCausalLM",
    "transformers.models.glm.modeling_glm",
    DecoderSpec("GlmDecoderLayer", "GlmRotaryEmbedding", "pairs", positions=131_072, head_dim=128),
)
