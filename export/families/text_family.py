"""Shared text half of all GLM families."""

from __future__ import annotations

from typing import Any

from edgeglm.errors import UnsupportedError
from edgeglm.export.families.rope import FILE, UNCHANGED
from edgeglm.export.model import Decoder, RotaryStyle


def describe_decoder(
    config: Any,
    prefix: str,
    tied: bool,
    head: str = "lm_head.weight",
    style: RotaryStyle = "pairs",
    mrope_section: tuple[int, ...] = (),
) -> Decoder:
    """Return the decoder that a transformers text configuration describes.

    Args:
        config: The configuration.
        prefix: What the names of its weights begin with.
        tied: Whether the head is the embedding.
        head: The weight of a head that is not.
        style: How the rotary embedding turns a head's channels.
        mrope_section: The sections of its positions, where the configuration has none.

    Raises:
        UnsupportedError: Its rotary embedding turns no channels, half a pair of them, or not those of its sections.
    """
    rope: dict[str, Any] = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # A proportional embedding has an angle for every channel of the head, of which the last ones are zero.
    partial = 1.0 if rope["rope_type"] == "proportional" else rope.get("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * partial)
    if rotary_dim < 2 or rotary_dim % 2:
        why = f"its rotary embedding turns {rotary_dim} of the {head_dim} channels of a head, and it turns pairs"
        raise UnsupportedError(FILE, why, UNCHANGED)
    sections = rope.get("mrope_section") or mrope_section
    if sections and not _is_split(sections, rotary_dim // 2):
        why = f"its mrope_section is {sections!r:.60}, which does not add up to the {rotary_dim // 2} pairs that turn"
        raise UnsupportedError(FILE, why, UNCHANGED)
    embedding = f"{prefix}.embed_tokens.weight"
    return Decoder(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
        mrope_section=tuple(sections),
        style=style,
        blocks=f"{prefix}.layers.{{layer}}.",
        embedding=embedding,
        norm=f"{prefix}.norm.weight",
        head=embedding if tied else head,
    )


def _is_split(sections: Any, whole: int) -> bool:
    if not isinstance(sections, list | tuple) or not all(type(size) is int and size >= 0 for size in sections):
        return False
    return sum(sections) == whole
