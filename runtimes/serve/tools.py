"""Tools of a request: which may be called, and how calls and their results reach the chat template."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import Message
from edgeglm.runtimes.text.templates import DEFAULT, TOOLS

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
KEY_OPEN, KEY_CLOSE, VALUE_OPEN, VALUE_CLOSE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
# ``tagged``: GLM-4.5's <tool_call> with a tag for each argument; ``lines``: GLM-4's name, and JSON in the next line.
Form = Literal["tagged", "lines"]
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call that the model wrote; `arguments` are a JSON object, or its beginning where a limit cut it."""

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
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def refuse(constant: str) -> NoReturn:
    """Take a constant that Python reads and JSON does not have. Raises ValueError."""
    raise ValueError(constant)
