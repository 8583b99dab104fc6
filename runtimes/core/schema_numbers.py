"""Find numbers in JSON schemas that llguidance takes for others, or for which it recurses without an end."""

from __future__ import annotations

import json
import re

# It counts in 64 bits: a lower maximum of integers is taken for this one, whose digits it seeks until the stack ends.
LOWEST = -(1 << 63) + 1024
MAXIMA = ("maximum", "exclusiveMaximum")
# It holds them as floats, which round greater integers.
VALUES = ("const", "enum")
# A longer one is no float either.
DIGITS = 300
# Where a schema begins: in a file of its own, and in Lark.
ALONE, IN_LARK = re.compile(r"\A\s*"), re.compile(r"\A\s*|%json\s*")


class SchemaNumberError(Exception):
    """Raised where a number cannot be followed; the message says which."""


def check_numbers(text: str, *, is_schema: bool) -> None:
    """Check a schema, or those in a grammar in Lark; what is no JSON is left to llguidance.

    Raises:
        SchemaNumberError: A number cannot be followed.
    """
    decoder, end = json.JSONDecoder(parse_int=_number, object_pairs_hook=_checked), 0
    for match in (ALONE if is_schema else IN_LARK).finditer(text):
        if match.end() < end:  # a text within one that was checked
            continue
        try:
            _, end = decoder.raw_decode(text, match.end())
        except (json.JSONDecodeError, RecursionError):
            continue


def _number(text: str) -> int | float:
    return int(text) if len(text) < DIGITS else float(text)


def _checked(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for key, value in pairs:
        if key in MAXIMA and isinstance(value, int | float) and value < LOWEST:
            raise SchemaNumberError(f"the {key} {value} is below what 64 bits hold")
        if key in VALUES and (rounded := _rounded(value)) is not None:
            raise SchemaNumberError(f"{rounded} in {key} would be rounded: it has more than 53 bits")
    return dict(pairs)


def _rounded(value: object) -> int | None:
    """Return an integer within a value that a float does not hold, if there is one."""
    if isinstance(value, int):
        return None if int(float(value)) == value else value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for part in parts if (found := _rounded(part)) is not None), None)
