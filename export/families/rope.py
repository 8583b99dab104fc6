"""Read how many positions a rotary embedding is made for, and whether its angles depend on the prompt's length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from edgeglm.errors import UnsupportedError

# Of transformers 5.23 (modeling_rope_utils.ROPE_INIT_FUNCTIONS), beside the plain one.
TYPES = ("default", "linear", "yarn", "llama3", "proportional", "dynamic", "longrope")
# Their angles are others once a prompt is longer than what the model was first trained for.
VARYING = ("dynamic", "longrope")
# What describes a model, and what helps where it cannot be one.
FILE, UNCHANGED = "config.json", "take an unchanged config of the model"
# Where older and newer configs have its settings: the first of them that is not empty counts.
ROPES = ("rope_scaling", "rope_parameters")


@dataclass(frozen=True)
class Positions:
    """The most positions, and for a rotary embedding whose angles would change beyond them its type."""

    most: int
    varying: str | None = None


def read_positions(text: Mapping[str, Any], file: object = FILE, usual: int | None = None) -> Positions:
    """Return what a text model's config says: ``max_position_embeddings``, and what its rope scaling makes of it.

    Args:
        text: The config.
        file: Where it is from.
        usual: What transformers takes where the config says no ``max_position_embeddings``.

    Raises:
        UnsupportedError: The rotary embedding is of no type that transformers knows, or its settings are no numbers.
    """
    longest = text.get("max_position_embeddings", usual)
    if not _is_count(longest):
        said = f"{longest!r:.60} as" if "max_position_embeddings" in text else "no"
        raise UnsupportedError(file, f"has {said} max_position_embeddings", UNCHANGED)
    # In transformers' order (5.23, convert_rope_params_to_dict).
    rope: object = next((text[name] for name in ROPES if text.get(name)), {})
    if not isinstance(rope, Mapping):
        raise UnsupportedError(file, "its rope_scaling is no object", UNCHANGED)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in TYPES:
        why = f"its rotary embedding is of the type {kind!r:.60}, which transformers does not know"
        raise UnsupportedError(file, why, f"use one of {', '.join(TYPES)}")
    original = text.get("original_max_position_embeddings", rope.get("original_max_position_embeddings", longest))
    factor = rope.get("factor") or 1.0
    if not _is_count(original) or not isinstance(factor, int | float) or not 1 <= factor <= 1 << 20:
        why = f"its rope scaling has factor {factor!r:.60} and original_max_position_embeddings {original!r:.60}"
        raise UnsupportedError(file, why, "give a factor of 1 or more, and a whole number of positions")
    if kind in VARYING:
        return Positions(original if kind == "longrope" else longest, kind)
    return Positions(max(longest, int(original * factor)))


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 40
