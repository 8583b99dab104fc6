"""The phone agent's action language (Open-AutoGLM): ``do(action="Tap", element=[x,y])``, ``finish(message="…")``.

Coordinates are in thousandths of the screen's width and height. Answers are parsed with `ast`, never evaluated.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

Value = str | tuple[int, int]

TAPS = ("Tap", "Double Tap", "Long Press")
ACTIONS = (*TAPS, "Swipe", "Type", "Launch", "Back", "Home", "Wait", "Take_over", "finish")

_CALL = re.compile(r"(do|finish)\(.*\)", re.DOTALL)


@dataclass(frozen=True)
class Action:
    """One action: its type (of ACTIONS, or whatever the model said) and its other arguments."""

    type: str
    arguments: dict[str, Value]

    @property
    def point(self) -> tuple[int, int] | None:
        """Where a tap goes, in thousandths; None for every other action."""
        element = self.arguments.get("element")
        return element if isinstance(element, tuple) and self.type in TAPS else None


def parse_action(response: str) -> Action | None:
    """The action in a model's response, with or without a thought before it; None where there is none."""
    found = _CALL.search(response.rpartition("<answer>")[2])
    if not found:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's on odd code, which a model's is now and then
            call = ast.parse(found.group().replace("\n", "\\n"), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            return None
        arguments = {word.arg: _value(ast.literal_eval(word.value)) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    kind = "finish" if call.func.id == "finish" else arguments.pop("action", None)
    return Action(kind, arguments) if isinstance(kind, str) else None


def _value(literal: object) -> Value:
    if isinstance(literal, str):
        return literal
    if isinstance(literal, list) and len(literal) == 2 and all(type(number) is int for number in literal):
        return literal[0], literal[1]
    raise ValueError(f"not a text or a point: {literal!r}")
