"""Read from headers the part of a tensor, and whether config.json belongs to the weights."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.families.registry import family_of, module_of
from edgeglm.export.families.spec import TEXT_EXTENTS, Extent
from edgeglm.roles import ENCODERS

REMEDY = "take the config.json of these weights, or download the whole checkpoint again"
LAYER = re.compile(r"\.(?:layers|blocks)\.(\d+)\.")


def part_of(tensor: str) -> str:
    """Return the part of the module that a tensor is in by its name; `modules.Stack` knows it from the traces."""
    if found := LAYER.search(tensor):
        return f"layer.{found[1]}"
    return "front" if "embed" in tensor else "back"


# Layers behind the last, which guess further tokens and are no part of the model (multi-token prediction).
GUESSING = "num_nextn_predict_layers"


def check_counts(checkpoint: Checkpoint) -> None:
    """Compare the counts and sizes of config.json with the headers, before anything is made as often or as large.

    Raises:
        DamagedFileError: One is no count, or not what the weights have.
    """
    config, file = checkpoint.config, checkpoint.folder / "config.json"
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    names = [*checkpoint.tensors, *checkpoint.foreign]
    own = [name for name in names if module_of(name) not in ENCODERS]
    parts = [(config.get("text_config", config), TEXT_EXTENTS, "num_hidden_layers", own)]
    for encoder in family_of(config).encoders:
        inside = [name for name in names if module_of(name) == encoder.name]
        parts.append((config.get(encoder.config) or {}, encoder.extents, encoder.depth, inside))
    for part, extents, layers, inside in parts:
        _check_layers(file, part, layers, inside)
        for extent in extents:
            shape = next((shapes[name] for name in inside if name in shapes and name.endswith(extent.weight)), ())
            if len(shape) > extent.axis:
                _check_extent(file, part, extent, shape[extent.axis])


def _check_layers(file: Path, part: Mapping[str, Any], key: str, names: Sequence[str]) -> None:
    asked = _count(file, part, key)
    there = 1 + max((int(found[1]) for name in names if (found := LAYER.search(name))), default=-1)
    guessing = _count(file, part, GUESSING) or 0
    if asked is not None and there and there not in (asked, asked + guessing):
        raise _contradicts(file, key, asked, f"{there} layers")


def _check_extent(file: Path, part: Mapping[str, Any], extent: Extent, there: int) -> None:
    others = (*extent.over, *([extent.pieces_of] if extent.pieces_of else []))
    asked, factors = _count(file, part, extent.key), [_count(file, part, key) for key in others]
    if asked is None or None in factors:  # left to transformers' default
        return
    product = math.prod(factor for factor in factors if factor is not None)
    needed = (asked // max(product, 1)) ** 2 if extent.pieces_of else asked * product
    if needed != there:
        also = "".join(f" and {key} {part[key]}" for key in others)
        raise _contradicts(file, extent.key, f"{asked}{also}", f"{there} there ({extent.weight.strip('.')})")


def _count(file: Path, part: Mapping[str, Any], key: str) -> int | None:
    value = part.get(key)
    if value is not None and (type(value) is not int or value < 0):
        raise DamagedFileError(file, f"its {key} is {reprlib.repr(value)}, which is no count", REMEDY)
    return value


def _contradicts(file: Path, key: str, asked: object, there: str) -> DamagedFileError:
    return DamagedFileError(file, f"its {key} is {asked}, and the weights have {there}", REMEDY)
