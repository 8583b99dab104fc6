"""Build transformers' own config class from a checkpoint's config; importing this needs transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import logging

from edgeglm.export.families.configs import normalize


def build_config(config: Mapping[str, Any]) -> Any:
    """Return the config of transformers' class for the first of ``architectures``.

    What transformers would remark on an older form is not for the user of edgeglm.
    """
    logging.set_verbosity_error()
    return getattr(transformers, config["architectures"][0]).config_class.from_dict(dict(config))


def reference_config(folder: Path) -> Any:
    """Return the config that the original is built from: transformers' own reading of the folder, where it has one.

    Which weights are tied is left to transformers.
    """
    return build_config(normalize(json.loads((folder / "config.json").read_bytes()), ()))
