"""Model families, one file each: a family's parts, and their places in transformers."""

# The architectures that a checkpoint's config may name -> the module that describes them.
FAMILIES = {
    "GlmForCausalLM": "glm",
    "Glm4ForCausalLM": "glm4",
    "Glm4vForConditionalGeneration": "glm4v",
}
