"""Which module and which part of it a tensor belongs to, as its name in the checkpoint says."""

from __future__ import annotations

import re

LAYER = re.compile(r"\.(?:layers|blocks)\.(\d+)\.")


def module_of(tensor: str) -> str:
    """The module of a tensor."""
    if ".visual." in tensor:
        return "vision"
    return "embedding" if tensor.endswith("embed_tokens.weight") else "decoder"


def part_of(tensor: str) -> str:
    """The part of its module that a tensor with a common name is in; `modules.Stack` knows it from the traces."""
    if found := LAYER.search(tensor):
        return f"layer.{found[1]}"
    return "front" if "embed" in tensor else "back"
