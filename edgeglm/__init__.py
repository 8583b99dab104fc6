"""edgeglm: GLM-family checkpoints to proven device bundles."""
