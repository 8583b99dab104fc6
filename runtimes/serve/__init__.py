"""The OpenAI-compatible server of a bundle: ``edgeglm serve``."""
