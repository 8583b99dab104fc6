"""JSON that says one thing: UTF-8, no key twice, no number that is none, nothing that a terminal would obey."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

# Control characters; those that turn the direction of text; halves of a character, which no terminal can show.
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Of a number: more than those of any 64-bit one. Python takes the square of it in time.
MAX_DIGITS = 32


class StrictJsonError(ValueError):
    """Text that is JSON, and not strictly.

    Attributes:
        key: Where, if that is known.
        why: What is wrong, in a clause.
    """

    def __init__(self, key: str | None, why: str) -> None:
        self.key, self.why = key, why
        super().__init__(f"{key}: {why}" if key else why)


def check_json(data: bytes) -> None:
    """Raise unless the bytes are strict JSON.

    Raises:
        StrictJsonError: They are not; the message names the key where it can.
    """
    try:
        text = data.decode()
        tree = json.loads(text, object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_Unfit)
    except UnicodeDecodeError as error:
        raise StrictJsonError(None, f"is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error
    except json.JSONDecodeError as error:
        raise StrictJsonError(None, f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise StrictJsonError(None, "is not valid JSON: it is nested too deeply") from error
    if why := _fault(tree):
        raise StrictJsonError(None, why)


def fitted(text: str) -> str:
    """Return a text, such as a file's name, as strict JSON may have it: what is unfit becomes a question mark."""
    return UNFIT.sub("?", text)


class _Unfit:
    """A number that is refused where its key is known."""

    def __init__(self, text: str) -> None:
        self.text = text


def _integer(text: str) -> int | _Unfit:
    return int(text) if len(text) <= MAX_DIGITS else _Unfit(text)


def _float(text: str) -> float | _Unfit:
    value = float(text) if len(text) <= 10 * MAX_DIGITS else math.inf
    return value if math.isfinite(value) else _Unfit(text)


def _pairs(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    known: dict[str, object] = {}
    for key, value in pairs:
        if UNFIT.search(key):
            raise StrictJsonError(None, f"has the key {key!r}, with control characters")
        if key in known:
            raise StrictJsonError(key, "stands twice")
        if why := _fault(value):
            raise StrictJsonError(key, why)
        known[key] = value
    return known


def _fault(value: object) -> str | None:
    """Return what is wrong with a value, inside of lists too; objects were checked before."""
    if isinstance(value, str) and UNFIT.search(value):
        return f"{value[:80]!r} has control characters"
    if isinstance(value, _Unfit):
        return f"{value.text[:MAX_DIGITS]} is infinite, NaN or too long"
    if isinstance(value, list):
        return next((why for item in value if (why := _fault(item))), None)
    return None
