"""Build transformers' own config class from a checkpoint's config; importing this needs transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.activations import ACT2FN
from transformers.utils import logging

from edgeglm.errors import UnsupportedError
from edgeglm.export.families.configs import normalize
from edgeglm.export.families.rope import FILE, UNCHANGED


def build_config(config: Mapping[str, Any]) -> Any:
    """Return the config of transformers' class for the first of ``architectures``.

    What transformers would remark on an older form is not for the user of edgeglm. Nor is a dtype that torch does not
    have: the files of weights say theirs.

    Raises:
        UnsupportedError: transformers does not know an activation function.
    """
    logging.set_verbosity_error()
    known = {key: value for key, value in config.items() if key != "dtype" or _is_dtype(value)}
    built = getattr(transformers, config["architectures"][0]).config_class.from_dict(known)
    for part in (built, *(getattr(built, name) for name in built.sub_configs)):
        activation = getattr(part, "hidden_act", None)
        if activation is not None and activation not in ACT2FN:
            why = f"its hidden_act is {activation!r:.60}, which transformers does not know"
            raise UnsupportedError(FILE, why, UNCHANGED)
    return built


def _is_dtype(name: object) -> bool:
    return isinstance(getattr(torch, str(name), None), torch.dtype)


def reference_config(folder: Path) -> Any:
    """Return the config that the original is built from: transformers' own reading of the folder, where it has one.

    Which weights are tied is left to transformers.
    """
    return build_config(normalize(json.loads((folder / "config.json").read_bytes()), ()))
