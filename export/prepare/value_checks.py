"""Check the settings of config.json that no weight tells, before transformers is given them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.families.registry import family_of
from edgeglm.export.families.rope import FILE, ROPES, UNCHANGED


@dataclass(frozen=True)
class Range:
    """The numbers that a setting can be, and their name in a line."""

    name: str
    least: float = 0.0
    most: float = math.inf
    open: bool = False

    def has(self, value: object) -> bool:
        """Return whether a value is one of them."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return self.least <= value <= self.most and not (self.open and value == self.least)


# A norm without an epsilon is what transformers computes too, so that 0 is one.
NUMBERS = {
    "rms_norm_eps": Range("a number from 0 to 1", most=1.0),
    "rope_theta": Range("a number above 0", open=True),
    "partial_rotary_factor": Range("a number above 0 and at most 1", most=1.0, open=True),
}


def check_values(checkpoint: Checkpoint) -> None:
    """Compare what config.json says of each part with what can be computed.

    Raises:
        DamagedFileError: A value is no number, out of its range, or does not divide another.
    """
    config, file = checkpoint.config, checkpoint.folder / FILE
    family = family_of(config)
    text = config.get("text_config", config)
    _check_part(file, text, family.decoder.divided)
    for key in ("num_key_value_heads", *(["head_dim"] if family.decoder.free_heads else [])):
        if key in text and text[key] is None:
            raise _wrong(file, f"its {key} is null, where transformers needs a number")
    for encoder in family.encoders:
        if part := config.get(encoder.config):
            _check_part(file, part, encoder.divided)


def _check_part(file: Path, part: Mapping[str, Any], divided: Mapping[str, str]) -> None:
    for key, value in _numbers(part):
        if not NUMBERS[key].has(value):
            raise _wrong(file, f"its {key} is {reprlib.repr(value)}, which is not {NUMBERS[key].name}")
    for key, by in divided.items():
        whole, count = part.get(key), part.get(by)
        if type(whole) is int and type(count) is int and (count <= 0 or whole % count):
            raise _wrong(file, f"its {by} is {count}, which does not divide its {key}, {whole}")


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys of `NUMBERS` with their values, where a part or its rotary embedding has them."""
    ropes = [rope for name in ROPES if isinstance(rope := part.get(name), Mapping)]
    for place in (part, *ropes):
        yield from ((key, place[key]) for key in NUMBERS if key in place)


def _wrong(file: Path, why: str) -> DamagedFileError:
    return DamagedFileError(file, why, UNCHANGED)
