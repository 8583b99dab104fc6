"""GLM-4-0414 (`Glm4ForCausalLM`): sandwich norms around attention and MLP."""

from __future__ import annotations

from edgeglm.export.families.spec import DecoderSpec, Family

GLM4 = Family(
    "glm4",
    "Glm4ForCausalLM",
    "transformers.models.glm4.modeling_glm4",
    DecoderSpec("Glm4DecoderLayer", "Glm4RotaryEmbedding", "pairs", positions=131_072, head_dim=128),
)
