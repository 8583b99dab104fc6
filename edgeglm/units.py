"""Sizes and percentages as people write them: ``2GiB``, ``1500MB``, ``2%``."""

from __future__ import annotations

import re
from fractions import Fraction

from edgeglm.errors import UsageError

SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
DISPLAY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,18})?)"
SIZE = re.compile(NUMBER + r"([A-Za-z]*)")
PERCENT = re.compile(NUMBER + r"(%?)")
MAX_PERCENT = 100


def parse_size(text: str, option: str = "") -> int:
    """Return the bytes in a size such as ``2GiB``, ``1500MB`` or ``4096``; a fraction of a byte is dropped.

    Raises:
        UsageError: ``text``, which is that of the option, is not a number directly followed by nothing or one of
            `SIZE_UNITS`.
    """
    match = SIZE.fullmatch(text)
    unit = SIZE_UNITS.get(match[2] or "B") if match else None
    if match is None or unit is None:
        raise UsageError(_given(text, option), "is not a size", "write 2GiB, 1500MB or plain bytes")
    return int(Fraction(match[1]) * unit)


def format_size(size: int) -> str:
    """Return a size in the unit that keeps it below 1024, to two decimals: ``1.15GiB``.

    `parse_size` reads it back exactly when the size is whole in that unit, else within 0.5%.
    """
    for unit in DISPLAY_UNITS:
        scaled = round(Fraction(size, SIZE_UNITS[unit]), 2)
        if scaled < 1024:
            break
    return f"{float(scaled):.2f}".rstrip("0").rstrip(".") + unit


def parse_percent(text: str, option: str = "") -> float:
    """Return the fraction in a percentage: ``2%`` and ``0.02`` are both 0.02.

    Raises:
        UsageError: ``text``, which is that of the option, is not a number with or without ``%``, or lies outside 0 to
            100%.
    """
    what = _given(text, option)
    match = PERCENT.fullmatch(text)
    if match is None:
        raise UsageError(what, "is not a percentage", "write 2% or 0.02")
    value = Fraction(match[1]) / (100 if match[2] else 1)
    if value > 1:
        meant = f"{text}%" if not match[2] and value <= MAX_PERCENT else "2% or 0.02"
        raise UsageError(what, "is more than 100%", f"write {meant}")
    return float(value)


def _given(text: str, option: str) -> str:
    """Return what messages call a value: as it stands on a command line, where it is an option's."""
    return f"{option} {text or repr(text)}" if option else repr(text)
