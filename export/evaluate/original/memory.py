"""Predict the memory of the original during a comparison, in bytes of all processes."""

from __future__ import annotations

from edgeglm.export.model import Original
from edgeglm.export.predict.torch_build import with_torch

# torch's CPU build, transformers, an engine, and a batch of screens or sequences.
BASE_BYTES = 900 << 20


def base_bytes() -> int:
    """Return what a process takes besides weights: `BASE_BYTES` with the installed torch."""
    return with_torch(BASE_BYTES)


def whole_bytes(original: Original) -> int:
    """Return the memory of the whole original in fp32."""
    return base_bytes() + 4 * original.parameters


def is_streamed(original: Original, budget: int) -> bool:
    """Return whether it is streamed: the whole exceeds the budget, or transformers does not read its weights."""
    return not original.is_plain or whole_bytes(original) > budget


def streamed_bytes(original: Original) -> int:
    """Return the memory of one layer at a time; nothing else in memory at once is larger."""
    text = original.config.get("text_config")
    layers = (text if isinstance(text, dict) else original.config).get("num_hidden_layers")
    return base_bytes() + 4 * original.parameters // (layers if isinstance(layers, int) and layers > 0 else 1)
