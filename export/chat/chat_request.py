"""Request to the process with transformers, and its answer: plain data, so that both sides share it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from msgspec import Struct

# What strftime_now is told in both, so that a conversation renders alike tomorrow.
NOW = datetime(2026, 1, 2, 3, 4, 5)


class Case(Struct):
    """A conversation in Hugging Face's form, and the tools that go with it."""

    name: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


class Request(Struct):
    """Conversations to be rendered by a checkpoint's template; `sees` says that it has a processor."""

    folder: str
    sees: bool
    cases: list[Case]


class Rendered(Struct):
    """A conversation's text and tokens, or why there are none."""

    text: str | None = None
    tokens: list[int] | None = None
    error: str | None = None


class Answer(Struct):
    """The conversations as transformers encodes them, or why it loads no tokenizer."""

    rendered: list[Rendered] = []
    error: str | None = None
