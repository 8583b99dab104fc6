"""One file per model family: what it is made of and where transformers keeps the parts."""

# The architectures that a checkpoint's config may name -> the module that describes them.
FAMILIES = {
    "GlmForCausalLM": "glm",
    "Glm4ForCausalLM": "glm4",
    "Glm4vForConditionalGeneration": "glm4v",
}
