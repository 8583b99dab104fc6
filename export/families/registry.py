"""Registry of the families, by the architecture that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeglm.export.families.glm import GLM
from edgeglm.export.families.glm4 import GLM4
from edgeglm.export.families.glm4v import GLM4V
from edgeglm.export.families.spec import TABLE_WEIGHT, EncoderSpec, Family
from edgeglm.roles import DECODER, ENCODERS, TABLE, ModuleName

# By the architecture that a checkpoint's config may name.
FAMILIES: dict[str, Family] = {family.architecture: family for family in (GLM, GLM4, GLM4V)}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a checkpoint's config, whose architecture was checked."""
    return FAMILIES[config["architectures"][0]]


def encoder_specs() -> list[EncoderSpec]:
    """Return the encoders of all families."""
    return [encoder for family in FAMILIES.values() for encoder in family.encoders]


def image_key(config: object) -> str | None:
    """Return the key under which a config describes an image encoder, of whatever family; None where it has none.

    Args:
        config: A config.json's members, or transformers' reading of it.
    """
    images = (encoder.config for encoder in encoder_specs() if ENCODERS[encoder.name] == "image")
    return next((key for key in images if _value(config, key) is not None), None)


def image_config(config: object) -> Any:
    """Return what a config, as `image_key` takes it, says of its image encoder; None where it has none."""
    key = image_key(config)
    return key and _value(config, key)


def _value(config: object, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def module_of(tensor: str) -> ModuleName:
    """Return the module of a checkpoint's weight: an encoder of any family, by its own names; table; or decoder."""
    for encoder in encoder_specs():
        if any(part in f".{tensor}" for part in encoder.weights):
            return encoder.name
    return TABLE if tensor.endswith(TABLE_WEIGHT) else DECODER
