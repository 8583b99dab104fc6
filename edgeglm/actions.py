"""The phone agent's action language (Open-AutoGLM): ``do(action="Tap", element=[x,y])``, ``finish(message="…")``.

Coordinates are in thousandths of the screen's width and height. docs/actions.md says what is read and how.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property

Value = str | int | float | tuple[int, int]

TAPS = ("Tap", "Double Tap", "Long Press")
ACTIONS = (
    *TAPS, "Swipe", "Type", "Type_Name", "Launch", "Back", "Home", "Wait", "Interact", "Note", "Call_API", "Take_over",
    "finish",
)  # fmt: skip
# Open-AutoGLM's client takes all that stands behind their text as a piece of it.
TYPED = ("Type", "Type_Name", "finish")

# Of a hostile answer only the last ones are read, so that the time grows with its length alone.
_MOST_STARTS = 64
# Word characters of ASCII, because a Chinese thought goes over into its action without a blank.
_START = r"(?<![A-Za-z0-9_])(?:do\(\s*(?=action\s*=\s*[\"'])|finish\(\s*(?=message\s*=\s*[\"']|\)))"
_STARTS = re.compile(rf"<answer>|{_START}")
# What ends a text at the latest; an action behind a quote is one that the text quotes.
_LIMIT = re.compile(rf"</?answer>|(?<![\"']){_START}")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*")
_COMMA = re.compile(r"\s*,\s*")
_CLOSE = re.compile(r"\s*(?:,\s*)?\)")
# With the backslashes before a quote, of which an odd number escapes it.
_QUOTES = {quote: re.compile(rf"(?<!\\)(\\*){quote}") for quote in "\"'"}
_LAST_QUOTES = {quote: re.compile(rf"(?<!\\)(\\*){quote}(?=\s*(?:,\s*)?\))") for quote in "\"'"}
_NUMBER = r"[-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?![0-9A-Za-z_.])"
_NUMBERS = re.compile(_NUMBER)
_POINT = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*(?:,\s*)?[\])]")
_FLAG = re.compile(r"(?:True|False)(?![A-Za-z0-9_])")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([\\\"'nrt]))")
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True)
class Action:
    """An action: its type (of ACTIONS, or whatever the model said) and its other arguments."""

    type: str
    arguments: dict[str, Value]

    @property
    def point(self) -> tuple[int, int] | None:
        """The point of a tap, in thousandths of the screen; None for every other action."""
        element = self.arguments.get("element")
        return element if isinstance(element, tuple) and self.type in TAPS else None


def parse_action(response: str) -> Action | None:
    """Return the last action in a model's response, of its ``<answer>`` where it has one.

    None where there is no action, or the last one is unfinished. The time is in proportion to the length.
    """
    reader, action, end = _Reader(response), None, 0
    for start in deque(_STARTS.finditer(response), _MOST_STARTS):
        if start.start() < end:  # in a text of the action before
            continue
        found = None if start.group() == "<answer>" else reader.arguments(start.end())
        arguments, end = found or ({}, start.end())
        kind = arguments.pop("action", None) if start.group().startswith("do") else "finish"
        action = Action(kind, arguments) if found and isinstance(kind, str) else None
    return action


def write_action(action: Action) -> str:
    """Return an action as Open-AutoGLM writes it, quotes in its texts escaped; `parse_action` reads it back."""
    name, first = ("finish", {}) if action.type == "finish" else ("do", {"action": action.type})
    return f"{name}({', '.join(f'{key}={_written(value)}' for key, value in {**first, **action.arguments}.items())})"


def _written(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{value[0]},{value[1]}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


class _Reader:
    """Reads pieces of a response; what takes a look at all of it is looked up once."""

    def __init__(self, response: str) -> None:
        self.response = response
        self.last_quotes: dict[str, list[int]] = {}  # their ends

    @cached_property
    def limits(self) -> list[int]:
        """The last positions at which a text with quotes of its own may end."""
        return [limit.start() for limit in _LIMIT.finditer(self.response)]

    def arguments(self, at: int) -> tuple[dict[str, Value], int] | None:
        """Return the arguments from `at` on, and where the bracket behind them ends."""
        # What looks like an argument behind a typed text may be a piece of it.
        return self._arguments(at, typed_ends=True) or self._arguments(at, typed_ends=False)

    def _arguments(self, at: int, *, typed_ends: bool) -> tuple[dict[str, Value], int] | None:
        arguments: dict[str, Value] = {}
        is_typed = self.response.startswith("message", at)  # only finish begins with it
        while not (close := _CLOSE.match(self.response, at)):
            comma = _COMMA.match(self.response, at) if arguments else None
            key = _KEY.match(self.response, comma.end() if comma else at)
            if not key or key[1] in arguments or (arguments and not comma):
                return None
            if (value := self._value(key.end(), is_typed, typed_ends=typed_ends)) is None:
                return None
            arguments[key[1]], at = value
            is_typed = is_typed or arguments.get("action") in TYPED
        return arguments, close.end()

    def _value(self, at: int, is_typed: bool, *, typed_ends: bool) -> tuple[Value, int] | None:
        """Return the value at `at` and where it ends."""
        if self.response[at : at + 1] in _QUOTES:
            return self._text(at, is_typed, typed_ends=typed_ends)
        if point := _POINT.match(self.response, at):
            return (_rounded(point[1]), _rounded(point[2])), point.end()
        if number := _NUMBERS.match(self.response, at):
            return float(number[0]) if "." in number[0] else int(number[0]), number.end()
        flag = _FLAG.match(self.response, at)
        return (flag[0] == "True", flag.end()) if flag else None

    def _text(self, at: int, is_typed: bool, *, typed_ends: bool) -> tuple[str, int] | None:
        """Return the text whose quote opens at `at`, and where its closing quote ends.

        That is the next quote, if an argument or the bracket is behind it. Where the next quote is the text's own, and
        of a typed text where no argument follows or is to end it, it is the last quote with a bracket behind it.
        """
        quote = self.response[at]
        end = next(_unescaped(_QUOTES[quote], self.response, at + 1), None)
        is_closed = end is not None and _CLOSE.match(self.response, end)
        if end is None or not (is_closed or self._has_argument(end)) or (is_typed and (is_closed or not typed_ends)):
            end = self._last_quote(quote, at + 1, end if end and is_closed else at + 1)
        return (_unescape(self.response[at + 1 : end - 1]), end) if end else None

    def _has_argument(self, at: int) -> bool:
        """Return whether another argument follows."""
        comma = _COMMA.match(self.response, at)
        return bool(comma and _KEY.match(self.response, comma.end()))

    def _last_quote(self, quote: str, start: int, least: int) -> int | None:
        """Return the end of the last quote from `start` on with a bracket behind it; the text reaches to `least`."""
        if quote not in self.last_quotes:
            self.last_quotes[quote] = list(_unescaped(_LAST_QUOTES[quote], self.response, 0))
        ends, limit = self.last_quotes[quote], bisect_left(self.limits, least)
        stop = self.limits[limit] if limit < len(self.limits) else len(self.response)
        index = bisect_right(ends, stop) - 1
        return ends[index] if index >= 0 and ends[index] > start else None


def _unescaped(quotes: re.Pattern[str], response: str, start: int) -> Iterator[int]:
    """Yield the ends of the quotes that no backslash escapes."""
    return (quote.end() for quote in quotes.finditer(response, start) if len(quote[1]) % 2 == 0)


def _rounded(number: str) -> int:
    """Return a coordinate as a whole number; a half goes away from zero."""
    return int(Decimal(number).to_integral_value(ROUND_HALF_UP))


def _unescape(text: str) -> str:
    """Return a text without its escapes: Python's, as far as models write them; others stay as they are."""
    text = _ESCAPE.sub(_meant, text)
    # Two halves of a character make one, and a half alone is none that could be printed.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _meant(escape: re.Match[str]) -> str:
    if code := escape[1] or escape[2]:
        return chr(int(code, 16))
    return _CONTROLS.get(escape[3], escape[3])
