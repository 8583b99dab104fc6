"""The conversations that are compared: what clients send to agents, whatever of it a template knows."""

from __future__ import annotations

from typing import Any

from edgeglm.export.chat.chat_request import Case

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查询天气 <now> & later",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "北京"}}}
SYSTEM = {"role": "system", "content": "You are an agent for phones.\nToday: 2026-01-02."}
ASK = {"role": "user", "content": "打开设置 <b> \"now\" & 'then'"}
ANSWER = {"role": "assistant", "content": '<think>Open it.</think>\ndo(action="Tap", element=[1,2])'}
NEXT = {"role": "user", "content": "  Go on,  1234 times…\n\n"}
PICTURE = {"type": "image", "url": "screen.png"}


def cases(*, sees: bool) -> list[Case]:
    """Return them; those with pictures where the model sees."""
    found = [
        Case("a question", [ASK]),
        Case("turns with a system prompt", [SYSTEM, ASK, ANSWER, NEXT]),
        Case("reasoning", [ASK, {"role": "assistant", "content": "Yes.", "reasoning_content": "Is it? "}, NEXT]),
        Case("tools", [SYSTEM, ASK], [WEATHER]),
        Case("tools in a message", [{"role": "system", "content": "", "tools": [WEATHER]}, ASK]),
        Case("a tool's answer", [ASK, _call(), {"role": "tool", "content": '{"rain": 0.5}'}, NEXT], [WEATHER]),
    ]
    if sees:
        found += [
            Case("an image", [SYSTEM, _with([PICTURE, _text("Tap OK")])]),
            Case("two images", [_with([_text("Before:"), PICTURE, _text("after:"), PICTURE]), ANSWER, NEXT]),
        ]
    return found


def _call() -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [CALL]}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _with(parts: list[dict[str, str]]) -> dict[str, Any]:
    return {"role": "user", "content": parts}
