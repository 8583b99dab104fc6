"""Grammar of an answer with tools, in Lark as llguidance takes it: each call follows its tool's schema."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from edgeglm.runtimes.core.grammar import JSON_FORM
from edgeglm.runtimes.serve.tools import (
    CALL_CLOSE,
    CALL_OPEN,
    KEY_CLOSE,
    KEY_OPEN,
    VALUE_CLOSE,
    VALUE_OPEN,
    Form,
    Tool,
    is_text,
)

# What the grammar calls the text before a call.
FREE = "free"


def tool_grammar(
    tools: Mapping[str, Tool], form: Form, template: str, tokens: Mapping[str, int], *, must: bool, many: bool
) -> str | None:
    """Return the grammar of an answer.

    Args:
        tools: That may be called.
        form: Of the template.
        template: Its text.
        tokens: The tokenizer's added tokens by their text, without those that end an answer.
        must: Whether there is nothing but calls; else a text may come before them, or alone.
        many: Whether there may be several calls.

    Returns:
        None where a text and a call cannot be told apart by their beginning.
    """
    calls = "call+" if many and form == "tagged" else "call"
    if form == "tagged" and not must and CALL_OPEN not in tokens:
        return None
    # Without a newline between tags where the template has none.
    gap = "" if f"{KEY_CLOSE}{VALUE_OPEN}" in template else "\n"
    rules = [f"start: {calls}"] if must else [*_free(tools, form, tokens, calls)]
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
    for number, tool in enumerate(tools.values()):
        rules += _tagged(number, tool, tokens, gap) if form == "tagged" else _lines(number, tool)
    return "\n".join(rules)


def _free(tools: Mapping[str, Tool], form: Form, tokens: Mapping[str, int], calls: str) -> Iterator[str]:
    """Yield the rules of an answer that need not call."""
    tags = (CALL_OPEN, CALL_CLOSE, KEY_OPEN, KEY_CLOSE, VALUE_OPEN, VALUE_CLOSE)
    others = sorted(token for text, token in tokens.items() if text not in tags)
    words = f"(TEXT | <[{','.join(map(str, others))}]>)*" if others else "TEXT?"
    if form == "tagged":
        yield f"start: {FREE} | {FREE} {calls}"
        yield "TEXT: /(?s:.+)/"
    else:
        yield f"start: {FREE} | {calls}"
        yield f"TEXT: /(?s:.+)/ & ~/({'|'.join(name.replace('.', chr(92) + '.') for name in tools)})\\n(?s:.*)/"
    yield f"{FREE}: {words}"


def _lines(number: int, tool: Tool) -> Iterator[str]:
    yield f"call_{number}: {_quoted(tool.name + chr(10))} arguments_{number}"
    yield f"arguments_{number}: %json {_json(_closed(tool.parameters))}"


def _tagged(number: int, tool: Tool, tokens: Collection[str], gap: str) -> Iterator[str]:
    """Yield the rules of a call: arguments in the schema's order, those that are not required left out at will."""
    schema = _closed(tool.parameters)
    properties, required = schema["properties"], schema.get("required", ())
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    names = [f"argument_{number}_{place}" + ("" if key in required else "?") for place, key in enumerate(properties)]
    end = _tag(CALL_CLOSE, tokens)
    yield f"call_{number}: {_tag(CALL_OPEN, tokens)} {_quoted(tool.name + gap)} {' '.join(names)} {end}"
    for place, (key, value) in enumerate(properties.items()):
        head = f"{_tag(KEY_OPEN, tokens)} {_quoted(key)} {_tag(KEY_CLOSE, tokens)} {_quoted(gap)}"
        tail = f"{_tag(VALUE_CLOSE, tokens)} {_quoted(gap)}"
        rule = f"value_{number}_{place}"
        terminal = f"{rule.upper()}" if is_text(value) else rule
        yield f"argument_{number}_{place}: {head} {_tag(VALUE_OPEN, tokens)} {terminal} {tail}".replace('""', "")
        yield f"{terminal}: " + (
            _text(value, tokens) if is_text(value) else f"%json {_json({**shared, **_any(value)})}"
        )


def _text(schema: Mapping[str, Any], tokens: Collection[str]) -> str:
    """Return the expression of a text as it is, without quotes."""
    words = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if words:
        return " | ".join(map(_quoted, words))
    least, most = (schema.get(name) for name in ("minLength", "maxLength"))
    lengths = f"{least if isinstance(least, int) else 0},{most if isinstance(most, int) else ''}"
    text = f"/(?s:.{{{lengths}}})/"
    return text if VALUE_CLOSE in tokens else rf"{text} & ~/(?s:.*)<\/arg_value>(?s:.*)/"


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema of arguments that takes those alone which it names, if it says nothing else."""
    return {"type": "object", "properties": {}, "additionalProperties": False, **parameters}


def _any(schema: object) -> dict[str, Any]:
    return schema if isinstance(schema, dict) else {}


def _json(schema: Mapping[str, Any]) -> str:
    return json.dumps({"x-guidance": JSON_FORM, **schema})


def _tag(tag: str, tokens: Collection[str]) -> str:
    """Return a tag as the grammar has it: a token, or a text where it is none."""
    return tag if tag in tokens else _quoted(tag)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
