"""Where the checkpoint that the user names lies: a folder, a Hugging Face name, or the demo that ships with edgeglm."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgeglm.errors import UsageError

DEMO = Path(__file__).parent / "demo" / "checkpoint"
DEMO_NAME = "edgeglm-demo"
HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
DIRECTORY = "give a directory with config.json and model.safetensors"
HUB_FILES = ("*.json", "*.safetensors", "*.jinja")


def locate(model: str | None) -> tuple[Path, str]:
    """The checkpoint's folder and the model's name; None is the demo.

    Raises:
        UsageError: There is no such folder, and it cannot be had from the hub.
    """
    if model is None:
        return DEMO, DEMO_NAME
    folder = Path(model)
    if os.path.lexists(folder) or not HUB_NAME.fullmatch(model):
        return folder, Path(os.path.abspath(folder)).name
    return _download(model), model


def _download(name: str) -> Path:
    # Only here, because it costs an import that no folder needs.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:
        why = f"is no folder, and Hugging Face does not give it ({type(error).__name__})"
        raise UsageError(name, why, f"{DIRECTORY}, or check the name and the network") from error
