"""Roles of messages: what a chat template does not show would be lost without a word."""

from __future__ import annotations

from collections.abc import Sequence

from edgeglm.errors import EdgeglmError
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.tools import with_calls
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import Message, parts

COMMON, DEVELOPER = {"system", "user", "assistant"}, "developer"
MAX_ROLES = 8  # besides them
PROBE, BEFORE = "edgeglm", {"role": "user", "content": "?"}


def in_form(messages: Sequence[Message], chat: Chat, template: str) -> list[Message]:
    """Return messages in the chat template's form; `developer` is OpenAI's newer word for `system`.

    Args:
        messages: Normalized.
        chat: Of the model.
        template: Its text.

    Raises:
        ApiError: A message has a role that the template shows nothing of, or as `with_calls`.
    """
    if DEVELOPER not in template:
        messages = [{**message, "role": "system"} if message["role"] == DEVELOPER else message for message in messages]
    others = {str(message["role"]) for message in messages if any(map(_has_text, parts(message)))} - COMMON
    tried, beyond = sorted(others)[:MAX_ROLES], sorted(others)[MAX_ROLES:]
    if lost := [role for role in tried if not _is_shown(role, chat, template)] or beyond:
        raise ApiError(400, f"messages: the model's chat template has no role {lost[0][:80]!r}", param="messages")
    return with_calls(messages, template)


def _has_text(part: Message) -> bool:
    return bool(part.get("text"))


def _is_shown(role: str, chat: Chat, template: str) -> bool:
    """Return whether a message's text comes through; where the template refuses the trial, it will say so itself."""
    try:
        return PROBE in chat.render(with_calls([BEFORE, {"role": role, "content": PROBE}], template))
    except EdgeglmError:
        return True
