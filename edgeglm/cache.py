"""Cache folder: the user's, for all that edgeglm can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Return ``$XDG_CACHE_HOME/edgeglm``, or ``~/.cache/edgeglm``; None where the user has no home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # as the XDG base directory specification demands
        base = Path(os.path.expanduser("~/.cache"))
    return base / "edgeglm" if base.is_absolute() else None
