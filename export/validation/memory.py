"""What the original takes while it is compared with a bundle, in bytes of all processes."""

from __future__ import annotations

from edgeglm.export.model import Original

# torch, transformers, an engine, and a batch of screens or sequences.
BASE_BYTES = 900 << 20


def whole_bytes(original: Original) -> int:
    """As a whole, in fp32."""
    return BASE_BYTES + 4 * original.parameters


def is_streamed(original: Original, budget: int) -> bool:
    """Whether it answers layer by layer: the whole takes more than the budget, or transformers alone reads others."""
    return not original.is_plain or whole_bytes(original) > budget


def streamed_bytes(original: Original) -> int:
    """One layer at a time; nothing else that is in memory at once is larger than a layer with its share of the rest."""
    text = original.config.get("text_config")
    layers = (text if isinstance(text, dict) else original.config).get("num_hidden_layers")
    return BASE_BYTES + 4 * original.parameters // (layers if isinstance(layers, int) and layers > 0 else 1)
