"""The requests of OpenAI's protocol as types, with what their fields may be.

A field that is not known is ignored, as OpenAI does. One that is known and not supported is an error that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import Struct

from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.schedule import Priority
from edgeglm.runtimes.serve.tools import Tool, read_tools

MAX_CHOICES, MAX_STOPS, MAX_TOP_LOGPROBS = 16, 16, 20
T = TypeVar("T")


class StreamOptions(Struct):
    """Options of a stream."""

    include_usage: bool | None = None


class Common(Struct, kw_only=True):
    """Fields that both forms of a completion have; None stands for the default of the bundle or of OpenAI."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    priority: Priority | None = None
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer and are not part of it."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Common, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    return_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    continue_final_message: bool | None = None
    audio: Any = None
    modalities: list[str] | None = None

    @property
    def callable_tools(self) -> dict[str, Tool]:
        """The tools that the answer may call, by their names.

        Raises:
            ApiError: A tool is malformed, or the one that is chosen is not there.
        """
        tools = read_tools(self.tools)
        match self.tool_choice:
            case "none":
                return {}
            case None | "auto":
                return tools
            case "required" if tools:
                return tools
            case {"type": "function", "function": {"name": str(name)}} if name in tools:
                return {name: tools[name]}
        why = "tool_choice is none, auto, required, or a function of tools by its name"
        raise ApiError(400, why, param="tool_choice")

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call and nothing else."""
        return self.tool_choice not in (None, "none", "auto")

    @property
    def schema(self) -> str | None:
        """The JSON schema of the answer, if it is to be JSON.

        Raises:
            ApiError: ``response_format`` is none of OpenAI's.
        """
        match self.response_format:
            case None | {"type": "text"}:
                return None
            case (
                {"type": "json_schema", "json_schema": {"schema": dict() as schema}}
                | {"type": "json_schema" | "json_object", "schema": dict() as schema}  # as llama.cpp's clients send it
            ):
                return msgspec.json.encode(schema).decode()
            case {"type": "json_object"}:
                return '{"type": "object"}'
        why = "response_format is of type text, json_object, or json_schema with json_schema.schema"
        raise ApiError(400, why, param="response_format")


class TextRequest(Common, kw_only=True):
    """``POST /v1/completions``: a text or its tokens."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class TokenizeRequest(Struct, kw_only=True):
    """``POST /tokenize``: a text, or a conversation by the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """``POST /detokenize``: tokens."""

    tokens: list[int]
    model: str | None = None


def decode(body: bytes | bytearray, kind: type[T]) -> T:
    """Read a request.

    Raises:
        ApiError: The body is not JSON, or a field has another type; it names the field.
    """
    try:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            return _with_whole_numbers(body, kind)
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$.")
        known = f": there are {', '.join(get_args(Priority))}" if "enum" in why else ""
        raise ApiError(400, f"{error}{known}", param=where.rstrip("`").partition("[")[0] or _missing(why)) from error
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ApiError(400, "the body is not UTF-8") from error


def _with_whole_numbers(body: bytes | bytearray, kind: type[T]) -> T:
    """Read a request whose language writes whole numbers as 1.0, such as Dart or Java with Gson."""
    fields = msgspec.json.decode(body, type=dict[str, Any])
    floats = {name: value for name, value in fields.items() if isinstance(value, float) and value.is_integer()}
    return msgspec.convert({**fields, **{name: int(value) for name, value in floats.items()}}, kind)


def check_common(asked: Common) -> None:
    """Refuse values that no answer can have.

    Raises:
        ApiError: It names the field.
    """
    _between("temperature", asked.temperature, 0, 2)
    _between("top_p", asked.top_p, 0, 1)
    _between("min_p", asked.min_p, 0, 1)
    _between("top_k", asked.top_k, -1, 1 << 31)
    _between("frequency_penalty", asked.frequency_penalty, -2, 2)
    _between("presence_penalty", asked.presence_penalty, -2, 2)
    _between("max_tokens", asked.max_tokens, 1, 1 << 31)
    _between("n", asked.n, 1, MAX_CHOICES)
    _between("repetition_penalty", asked.repetition_penalty, 0.001, 1000)
    if len(asked.stops) > MAX_STOPS or "" in asked.stops:
        raise ApiError(400, f"stop takes up to {MAX_STOPS} texts, none of them empty", param="stop")
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options")
    _refuse(asked, ("logit_bias",))


def check_chat(asked: ChatRequest) -> None:
    """Refuse what a chat completion cannot be. Raises as `check_common`."""
    check_common(asked)
    _between("max_completion_tokens", asked.max_completion_tokens, 1, 1 << 31)
    _between("top_logprobs", asked.top_logprobs, 0, MAX_TOP_LOGPROBS)
    if asked.top_logprobs and not asked.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
    _refuse(asked, ("functions", "function_call", "continue_final_message", "audio"))
    if asked.modalities not in (None, ["text"]):
        raise ApiError(400, "modalities: this server answers in text alone", param="modalities")
    if asked.callable_tools and asked.schema is not None:
        raise ApiError(400, "response_format and tools exclude each other", param="response_format")


def check_text(asked: TextRequest) -> None:
    """Refuse what a text completion cannot be. Raises as `check_common`."""
    check_common(asked)
    _between("logprobs", asked.logprobs, 0, MAX_TOP_LOGPROBS)
    _refuse(asked, ("echo", "suffix"))
    if asked.best_of not in (None, asked.n or 1):
        raise ApiError(400, "best_of is not supported: every answer is returned", param="best_of")


def _refuse(asked: Common, names: Sequence[str]) -> None:
    for name in names:
        if getattr(asked, name):
            raise ApiError(400, f"{name} is not supported by this server; leave it out", param=name)


def _between(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise ApiError(400, f"{name} is {value}, and may be {least} to {most}", param=name)


def _missing(why: str) -> str | None:
    """Return the field that msgspec says is missing."""
    return why.rpartition("field `")[2].rstrip("`") if "required field" in why else None
