"""Calls of tools: how a template's model writes them, told from the text of an answer."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.text import CLOSE, OPEN, overlap
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import Message
from edgeglm.runtimes.text.templates import DEFAULT, TOOLS

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
KEY_OPEN, KEY_CLOSE, VALUE_OPEN, VALUE_CLOSE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
TURN = "<|assistant|>"
# ``tagged``: GLM-4.5's <tool_call> with a tag for each argument; ``lines``: GLM-4's name, and JSON in the next line.
Form = Literal["tagged", "lines"]
_ARGUMENT = re.compile(rf"\s*{KEY_OPEN}(.*?){KEY_CLOSE}\s*{VALUE_OPEN}(.*?){VALUE_CLOSE}", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call that the model wrote; `arguments` are a JSON object."""

    name: str
    arguments: str
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or f"call_{uuid.uuid4().hex[:24]}")


def read_tools(given: Sequence[Any] | None) -> dict[str, Tool]:
    """Return a request's tools by their names.

    Raises:
        ApiError: One of them is no function, or two have one name.
    """
    tools = dict[str, Tool]()
    for tool in given or ():
        match tool:
            case {"type": "function", "function": {"name": str(name), **rest}} if _NAME.fullmatch(name):
                parameters = rest.get("parameters") or {}
                if isinstance(parameters, dict):  # some clients write null for what is not there
                    parameters = {key: value for key, value in parameters.items() if value is not None}
            case _:
                raise ApiError(400, "tools are functions with a name of letters, digits, _, . and -", param="tools")
        if name in tools or not isinstance(parameters, dict) or not _is_schema(parameters):
            why = "is there twice" if name in tools else "has parameters that are no JSON schema of an object"
            raise ApiError(400, f"tools: {name} {why}", param="tools")
        tools[name] = Tool(name, parameters)
    return tools


def _is_schema(parameters: dict[str, Any]) -> bool:
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    return isinstance(properties, dict) and isinstance(required, list)


def template_text(chat: Chat) -> str:
    """Return the text of the template that renders tools, empty where there is none."""
    sources = chat.template.sources if chat.template else {}
    source = sources.get(TOOLS) or sources.get(DEFAULT)
    return source.text if source else ""


def form_of(template: str) -> Form:
    """Return the form in which the model of a chat template writes calls."""
    return "tagged" if KEY_OPEN in template else "lines"


def with_calls(messages: Sequence[Message], template: str) -> list[Message]:
    """Return messages whose calls and results are in the template's form.

    Clients send arguments as text, and templates take an object. GLM-4's template has no calls: each one is a turn of
    its own with the name as metadata, and a result is an observation.

    Raises:
        ApiError: A call is malformed.
    """
    if "tool_calls" in template:
        return [_with_objects(message) if message.get("tool_calls") else message for message in messages]
    return [turn for message in messages for turn in _turns(message)]


def _with_objects(message: Message) -> Message:
    calls = [
        {**call, "function": {**call["function"], "name": name, "arguments": arguments}}
        for call, name, arguments in _calls(message)
    ]
    return {**message, "tool_calls": calls}


def _turns(message: Message) -> list[Message]:
    if message["role"] == "tool":
        return [{**message, "role": "observation"}]
    if not message.get("tool_calls"):
        return [message]
    text = [{"role": message["role"], "content": message["content"]}] if message.get("content") else []
    calls = _calls(message)
    return text + [
        {"role": message["role"], "metadata": name, "content": json.dumps(arguments, ensure_ascii=False)}
        for _, name, arguments in calls
    ]


def _calls(message: Message) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Return the calls of a message, each with its name and arguments."""
    given = message["tool_calls"]
    return [_read_call(call) for call in given] if isinstance(given, list) else [_read_call(given)]


def _read_call(call: object) -> tuple[dict[str, Any], str, dict[str, Any]]:
    match call:
        case {"function": {"name": str(name), **rest}} if isinstance(given := rest.get("arguments") or {}, (dict, str)):
            arguments = given if isinstance(given, dict) else _object(given)
            if arguments is not None and isinstance(call, dict):
                return call, name, arguments
    why = "tool_calls have a function with a name, and arguments that are a JSON object as text"
    raise ApiError(400, f"messages: {why}", param="messages")


class CallReader(Protocol):
    """Tells calls from an answer's text, piece by piece. What is no call stays text."""

    def add(self, piece: str) -> tuple[str, tuple[Call, ...]]:
        """Return the text that can be shown by now, and the calls that are whole by now."""

    def finish(self) -> str:
        """Return what was held back in vain."""


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

    def finish(self) -> str:
        """Return what was held back in vain; blanks behind a call are nothing."""
        held, self.held = self.held, ""
        return "" if self.called and not held.strip() else held

    def _until(self, marks: Sequence[str]) -> tuple[str, str]:
        """Take the text before the first mark out of what is held; keep what may begin one, and blanks before it."""
        places = [(place, mark) for mark in marks if (place := self.held.find(mark)) >= 0]
        place, mark = min(places, default=(len(self.held), ""))
        text = self.held[: place if mark else place - max(overlap(self.held, mark) for mark in marks)]
        text = text.rstrip() if mark in ("", CALL_OPEN) else text
        self.held = self.held[place if mark else len(text) :]
        return text, mark

    def _call(self, body: str) -> Call | None:
        name, place = body.partition(KEY_OPEN)[0].strip(), body.find(KEY_OPEN)
        if (tool := self.tools.get(name)) is None:
            return None
        arguments = dict[str, Any]()
        place = len(body) if place < 0 else place
        while match := _ARGUMENT.match(body, place):
            key, place = match[1].strip(), match.end()
            arguments[key] = _value(match[2], tool.parameters, key)
        return None if body[place:].strip() else Call(name, json.dumps(arguments, ensure_ascii=False))


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

    def finish(self) -> str:
        """Return what was held back in vain; blanks behind a call are nothing."""
        held, self.held = self.held, ""
        return "" if self.called and not held.strip() else held

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
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def is_text(schema: object) -> bool:
    """Return whether a JSON schema takes texts alone."""
    match schema:
        case {"type": "string"}:
            return True
        case {"enum": [*values]} if values:
            return all(isinstance(value, str) for value in values)
        case {"const": str()}:
            return True
    return False


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object_end(text: str, start: int) -> int | None:
    """Return where the JSON object ends that begins at `start`; None if it is not whole, or none."""
    try:
        return json.JSONDecoder(parse_constant=_refuse).raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
