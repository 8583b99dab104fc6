"""Readers of an answer's text, which tell the calls of tools in it from what is text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgeglm.runtimes.serve.text import CLOSE, OPEN, overlap
from edgeglm.runtimes.serve.tools import (
    CALL_CLOSE,
    CALL_OPEN,
    KEY_CLOSE,
    KEY_OPEN,
    VALUE_CLOSE,
    VALUE_OPEN,
    Call,
    Form,
    Tool,
    is_text,
    refuse,
)

TURN = "<|assistant|>"
_ARGUMENT = re.compile(rf"\s*{KEY_OPEN}(.*?){KEY_CLOSE}\s*{VALUE_OPEN}(.*?){VALUE_CLOSE}", re.DOTALL)


class CallReader(Protocol):
    """Tells calls from an answer's text, piece by piece. What is no call stays text."""

    def add(self, piece: str) -> tuple[str, tuple[Call, ...]]:
        """Return the text that can be shown by now, and the calls that are whole by now."""

    def finish(self, *, cut: bool) -> tuple[str, tuple[Call, ...]]:
        """Return what was held back in vain; where the limit cut a call, as OpenAI does, a call with what it has."""


def call_reader(form: Form, tools: Mapping[str, Tool], *, thinks: bool) -> CallReader:
    """Return the reader of a form; `thinks` is whether the prompt has opened the reasoning already."""
    return TaggedReader(tools, thinks=thinks) if form == "tagged" else LinesReader(tools)


class TaggedReader:
    """Reads ``<tool_call>NAME <arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>``.

    Reasoning, ``<think>…</think>``, is text.
    """

    def __init__(self, tools: Mapping[str, Tool], *, thinks: bool = False) -> None:
        self.tools, self.held, self.thinks, self.called = tools, "", thinks, False

    def add(self, piece: str) -> tuple[str, tuple[Call, ...]]:
        """Take a piece, as `CallReader` says."""
        self.held += piece
        shown, calls = "", list[Call]()
        while True:
            text, mark = self._until((CLOSE,) if self.thinks else (OPEN, CALL_OPEN))
            shown += text
            if mark != CALL_OPEN:
                if not mark:
                    return shown, tuple(calls)
                shown, self.held, self.thinks = shown + mark, self.held[len(mark) :], mark == OPEN
                continue
            body, closed, rest = self.held.partition(CALL_CLOSE)
            if not closed:
                return shown, tuple(calls)
            if call := self._call(body.removeprefix(CALL_OPEN)):
                calls.append(call)
                self.held, self.called = rest, True
            else:
                shown, self.held = shown + body + closed, rest

    def finish(self, *, cut: bool) -> tuple[str, tuple[Call, ...]]:
        """End it, as `CallReader` says; blanks behind a call are nothing, and an argument is whole or left out."""
        held, self.held = self.held, ""
        if cut and not self.thinks and held.startswith(CALL_OPEN):
            body = held.removeprefix(CALL_OPEN)
            name, arguments, _ = self._parts(body)
            # A name that nothing follows may be the beginning of another tool's.
            if name in self.tools and body.lstrip() != name:
                return "", (Call(name, json.dumps(arguments, ensure_ascii=False)[:-1]),)
        return "" if self.called and not held.strip() else held, ()

    def _until(self, marks: Sequence[str]) -> tuple[str, str]:
        """Take the text before the first mark out of what is held; keep what may begin one, and blanks before it."""
        places = [(place, mark) for mark in marks if (place := self.held.find(mark)) >= 0]
        place, mark = min(places, default=(len(self.held), ""))
        text = self.held[: place if mark else place - max(overlap(self.held, mark) for mark in marks)]
        text = text.rstrip() if mark in ("", CALL_OPEN) else text
        self.held = self.held[place if mark else len(text) :]
        return text, mark

    def _call(self, body: str) -> Call | None:
        name, arguments, rest = self._parts(body)
        return (
            Call(name, json.dumps(arguments, ensure_ascii=False)) if name in self.tools and not rest.strip() else None
        )

    def _parts(self, body: str) -> tuple[str, dict[str, Any], str]:
        """Return the name in a call's body, its whole arguments, and the rest."""
        name, mark, rest = body.partition(KEY_OPEN)
        name, rest, arguments = name.strip(), mark + rest, dict[str, Any]()
        tool = self.tools.get(name)
        while tool and (match := _ARGUMENT.match(rest)):
            key, rest = match[1].strip(), rest[match.end() :]
            arguments[key] = _value(match[2], tool.parameters, key)
        return name, arguments, rest


class LinesReader:
    """Reads a tool's name in a line of its own, and its arguments as a JSON object in the next."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.names, self.held, self.inside, self.called = [*tools], "", False, False
        line = rf"\s*(?:{re.escape(TURN)}\s*)?({'|'.join(map(re.escape, self.names))})[ \t]*\n\s*(?={{)"
        self._begin, self._next = re.compile(rf"(?:^|\n){line}"), re.compile(rf"\n{line}")

    def add(self, piece: str) -> tuple[str, tuple[Call, ...]]:
        """Take a piece, as `CallReader` says."""
        self.held += piece
        shown, calls = "", list[Call]()
        while match := (self._next if self.inside else self._begin).search(self.held):
            shown += self._take(match.start())
            end = _object_end(self.held, match.end() - match.start())
            if end is None:
                return shown, tuple(calls)
            calls.append(Call(match[1], self.held[match.end() - match.start() : end]))
            self.held, self.inside, self.called = self.held[end:], False, True
        return shown + self._take(self._safe()), tuple(calls)

    def finish(self, *, cut: bool) -> tuple[str, tuple[Call, ...]]:
        """End it, as `CallReader` says; blanks behind a call are nothing."""
        held, self.held = self.held, ""
        if cut and (match := (self._next if self.inside else self._begin).match(held)):
            return "", (Call(match[1], held[match.end() :]),)
        return "" if self.called and not held.strip() else held, ()

    def _take(self, end: int) -> str:
        text, self.held = self.held[:end], self.held[end:]
        self.inside = not text.endswith("\n") if text else self.inside
        return text

    def _safe(self) -> int:
        """Return where that begins which may be a call's beginning."""
        starts = [match.start() for match in re.finditer(r"\n", self.held)] + ([] if self.inside else [0])
        return min((start for start in starts if self._may_begin(self.held[start:])), default=len(self.held))

    def _may_begin(self, text: str) -> bool:
        text = re.sub(r"[ \t]*\n\s*", "\n", text.lstrip().removeprefix(TURN).lstrip())
        return any(f"{name}\n{{".startswith(text) for name in self.names) or TURN.startswith(text)


def _value(text: str, parameters: dict[str, Any], key: str) -> Any:  # noqa: ANN401 (a value of JSON)
    """Return an argument's value: a text where the schema says so, else JSON if it is."""
    properties = parameters.get("properties")
    schema = properties.get(key) if isinstance(properties, dict) else None
    if is_text(schema):
        return text
    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def _object_end(text: str, start: int) -> int | None:
    """Return where the JSON object ends that begins at `start`; None if it is not whole, or none."""
    try:
        return json.JSONDecoder(parse_constant=refuse).raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
