"""Prices of a template's operations: characters that they read and make, counted before they are made."""

from __future__ import annotations

import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, islice
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_SOURCE = 256 << 10  # characters of a template; those of models have up to some 20,000
MAX_TEXT = 4 << 20  # characters of what is rendered, and of any value on the way
BUDGET = 32 << 20  # characters that a rendering may touch or make
STEP = 128  # what a call or a round of a loop costs, in characters
MAX_INTEGER = 100_000  # of a filter's arguments, such as a width
MAX_BITS = 100_000  # of a computed integer
MAX_ITEMS = 1 << 18  # of a value with all that is in it

ENCODINGS = ("utf-8", "utf8", "UTF-8", "ascii", "latin-1")
NUMBER = re.compile(r"\d+")
NESTED_WIDTH = re.compile(r"\*|:[^{}]*\{")


class TemplateLimitError(SecurityError):
    """A template wants more than any conversation needs."""


class Meter:
    """The rest of a rendering's budget."""

    def __init__(self) -> None:
        self.left = BUDGET

    def spend(self, characters: int) -> None:
        """Pay; raises `TemplateLimitError` where the budget has not so much."""
        self.left -= characters
        if self.left < 0:
            raise TemplateLimitError("it loops or grows without end")


_METER: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered() -> Iterator[None]:
    """Give what is compiled or rendered meanwhile a budget of its own."""
    token = _METER.set(Meter())
    try:
        yield
    finally:
        _METER.reset(token)


def spend(characters: int) -> None:
    """Pay from the budget of the rendering that is going on."""
    _METER.get().spend(characters)


def make(characters: int) -> None:
    """Pay for a text or list that is about to be made."""
    if characters > MAX_TEXT:
        raise TemplateLimitError(f"it makes a text of more than {MAX_TEXT} characters")
    spend(characters)


def weigh(value: object) -> int:
    """Return the characters of a value with all that is in it; looking costs too.

    Values may share parts, and so be larger than the memory that they take.
    """
    total, stack, items = 0, [value], 0
    while stack:
        item = stack.pop()
        items += 1
        total += _own_size(item)
        if total > MAX_TEXT or items + len(stack) > MAX_ITEMS:
            raise TemplateLimitError("it makes a value that is too large")
        stack.extend(_parts(item))
    spend(8 * items)
    return total


def _own_size(item: object) -> int:
    if isinstance(item, (str, bytes)):
        return len(item)
    if isinstance(item, range):
        return 8 * len(item)
    return item.bit_length() // 3 + 1 if isinstance(item, int) else 8


def _parts(item: object) -> Iterable[object]:
    if isinstance(item, Mapping):
        return chain(item.keys(), item.values())
    if isinstance(item, Namespace):
        return (item._Namespace__attrs,)
    if isinstance(item, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
        return item
    return ()


def size(value: object) -> int:
    """Return the characters or items of the outermost of a value."""
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, set, range)) else 1


def listed(items: Any) -> Any:
    """Return items that have a length."""
    if isinstance(items, (str, list, tuple, dict)):
        return items
    found = list(islice(items, MAX_ITEMS + 1))
    if len(found) > MAX_ITEMS:
        raise TemplateLimitError("it makes a list that is too long")
    return found


def check_integers(values: Iterable[object]) -> None:
    """Refuse widths and the like that no text needs."""
    if any(isinstance(value, int) and abs(value) > MAX_INTEGER for value in values):
        raise TemplateLimitError(f"it gives a filter a number above {MAX_INTEGER}")


def price_operator(operator: str, left: Any, right: Any) -> None:
    """Pay for what ``+``, ``*``, ``%`` or ``**`` makes."""
    if isinstance(left, int) and isinstance(right, int):
        bits = max(left.bit_length(), 1)
        if {"*": bits + right.bit_length(), "**": bits * max(right, 1)}.get(operator, bits) > MAX_BITS:
            raise TemplateLimitError("it computes a number that is too large")
    elif operator == "%" and isinstance(left, bytes):
        raise TemplateLimitError("it formats bytes")
    elif operator == "%" and isinstance(left, str):
        price_format(left, *(right if isinstance(right, tuple) else [right]))
    elif operator == "*":
        count, items = (left, right) if isinstance(left, int) else (right, left)
        make(size(items) * max(0, count) if isinstance(count, int) else 1)
    else:
        make(size(left) + size(right))


def price_method(text: str, name: str, arguments: Sequence[Any]) -> None:
    """Pay for a method of a text."""
    spend(len(text) + sum(map(weigh, arguments)))
    if name == "encode" and arguments and arguments[0] not in ENCODINGS:
        raise TemplateLimitError("it encodes a text in an encoding other than UTF-8")  # some take time by its square
    if price := METHODS.get(name):
        price(text, *arguments)


def _flat(value: object) -> Iterator[object]:
    """Yield a value and all that is in it; `weigh` has said that it is not too much."""
    stack = [value]
    while stack:
        item = stack.pop()
        yield item
        stack.extend(_parts(item))


def price_format(text: str, *values: Any, **named: Any) -> None:
    """Pay for formatting: each field holds at most all values, and is as wide as the largest number says."""
    fields, found = text.count("{") + text.count("%"), [*values, *named.values()]
    widths = [min(int(digits[:9]), MAX_TEXT + 1) for digits in NUMBER.findall(text)]
    weight = sum(map(weigh, found))
    if NESTED_WIDTH.search(text):
        widths += [abs(value) for value in _flat(found) if isinstance(value, int)]
    make(len(text) + fields * (weight + max(widths, default=0)))


def _price_padding(text: Any, width: int = 80, *_: Any) -> None:
    make(max(size(text), width))


def _price_tabs(text: str, tabsize: int = 8) -> None:
    make(len(text) + text.count("\t") * max(0, tabsize))


def _price_replacement(text: Any, old: Any, new: Any, *_: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    make(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _price_translation(text: str, table: Any) -> None:
    values = table.values() if isinstance(table, Mapping) else table
    make(len(text) * max((len(value) for value in values if isinstance(value, str)), default=1))


def _price_indent(text: Any, width: int | str = 4, *_: Any) -> None:
    make(size(text) + (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(width)))


def _price_wrapping(
    text: Any, width: int = 79, break_long_words: bool = True, wrapstring: str | None = None, *_: Any
) -> None:
    make(size(text) * (1 + len(wrapstring or "")))


def _price_sum(values: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):  # each step copies what there is
        make(size(values) * weigh(values))


def price_lorem(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> None:
    """Pay for ``lipsum``."""
    make(STEP * n * max)


METHODS: dict[str, Callable[..., None]] = {
    "center": _price_padding,
    "ljust": _price_padding,
    "rjust": _price_padding,
    "zfill": _price_padding,
    "expandtabs": _price_tabs,
    "replace": _price_replacement,
    "translate": _price_translation,
    "join": lambda text, values: make(len(text) * size(values) + weigh(values)),
}
FILTERS: dict[str, Callable[..., None]] = {
    "center": _price_padding,
    "format": price_format,
    "indent": _price_indent,
    "replace": _price_replacement,
    "sum": _price_sum,
    "wordwrap": _price_wrapping,
}
