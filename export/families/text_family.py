"""Shared text half of all GLM families."""

from __future__ import annotations

from typing import Any

from edgeglm.export.model import Decoder, RotaryStyle


def describe_decoder(
    config: Any,
    prefix: str,
    tied: bool,
    head: str = "lm_head.weight",
    style: RotaryStyle = "pairs",
    mrope_section: tuple[int, ...] = (),
) -> Decoder:
    """Return the decoder that a transformers text configuration describes, its weights under `prefix`."""
    rope: dict[str, Any] = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # A proportional embedding has an angle for every channel of the head, of which the last ones are zero.
    partial = 1.0 if rope["rope_type"] == "proportional" else rope.get("partial_rotary_factor", 1.0)
    embedding = f"{prefix}.embed_tokens.weight"
    return Decoder(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * partial),
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
        mrope_section=tuple(rope.get("mrope_section") or mrope_section),
        style=style,
        blocks=f"{prefix}.layers.{{layer}}.",
        embedding=embedding,
        norm=f"{prefix}.norm.weight",
        head=embedding if tied else head,
    )
