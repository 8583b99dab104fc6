"""Tools: what a model writes becomes calls, and what clients send back reaches its template in its form."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("openai")
pytest.importorskip("langchain_openai")

import openai
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from edgeglm.runtimes.serve.calls import call_reader
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.tool_grammar import tool_grammar
from edgeglm.runtimes.serve.tools import Form, Tool, read_tools, with_calls
from tests.bundles import reseal
from tests.runtimes.serve.conftest import serving

CITIES = ["Bonn", "Köln"]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": CITIES},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"anyOf": [{"enum": ["C", "F"]}, {"type": "null"}]},
    },
    "required": ["city", "days"],
}
ASKED = [
    {"type": "function", "function": {"name": "get_weather", "description": "Tell", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "ping"}},
]
TOOLS = read_tools(ASKED)
# As GLM-4.5's and GLM-4's templates show tools, calls and results, in fewer words.
TAGGED_TEMPLATE = """[gMASK]<sop>{% if tools %}<|system|>
{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}<tool_call>{name}
<arg_key>{key}</arg_key>
<arg_value>{value}</arg_value>
</tool_call>{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|observation|>
<tool_response>{{ m.content }}</tool_response>{% else %}<|{{ m.role }}|>
{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}
{% for k, v in call.function.arguments.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v if v is string else v | tojson }}</arg_value>
{% endfor %}</tool_call>{% endfor %}{% endif %}{% endfor %}<|assistant|>
"""
LINES_TEMPLATE = """[gMASK]<sop>{% for m in messages %}{% if m['tools'] is defined %}<|system|>
{% for tool in m['tools'] %}{{ tool['function'] | tojson(indent=4) }}{% endfor %}{% endif %}{% if m['content'] %}\
<|{{ m['role'] }}|>{{ m['metadata'] }}
{{ m['content'] }}{% endif %}{% endfor %}<|assistant|>"""
# Tokens of the demo that no test here has a use for, as those of GLM-4.5.
RENAMED = {
    "[MASK]": "<tool_call>", "[sMASK]": "</tool_call>", "<eop>": "<arg_key>", "<|begin_of_video|>": "</arg_key>",
    "<|end_of_video|>": "<arg_value>", "<|video|>": "</arg_value>",
}  # fmt: skip


def rewrite(bundle: Path, file: str, text: str) -> None:
    data = text.encode()
    (bundle / file).write_bytes(data)
    reseal(bundle, lambda m: m["files"][file].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)))


@pytest.fixture(scope="module")
def address(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the demo with GLM-4.5's form of calls, and of one with GLM-4's."""
    folder = tmp_path_factory.mktemp("tools")
    tagged, lines = (Path(shutil.copytree(exact, folder / form)) for form in ("tagged", "lines"))
    rewrite(tagged, "tokenizer/chat_template.jinja", TAGGED_TEMPLATE)
    rewrite(lines, "tokenizer/chat_template.jinja", LINES_TEMPLATE)
    tokenizer = json.loads((tagged / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        if new := RENAMED.get(token["content"]):
            token |= {"content": new, "special": False}
    rewrite(tagged, "tokenizer/tokenizer.json", json.dumps(tokenizer))
    with serving(tagged, lines, "--threads", "1") as (_, url):
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=address, api_key="none", timeout=120, max_retries=0)


def check(name: str, arguments: str) -> None:
    """Check that a call is one of the tool's schema."""
    given = json.loads(arguments)
    assert name == "get_weather"
    assert {"city", "days"} <= given.keys() <= {"city", "days", "unit"}
    assert given["city"] in CITIES
    assert 1 <= given["days"] <= 9
    assert given.get("unit") in ("C", "F", None)


FORMS: tuple[Form, ...] = ("tagged", "lines")
USER: list[dict[str, Any]] = [{"role": "user", "content": "Weather in Bonn?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_that_must_be_made_follows_the_tools_schema(client: Any, form: Form) -> None:
    pytest.importorskip("llguidance")
    asked = {"model": form, "messages": USER, "tools": ASKED, "tool_choice": NAMED, "temperature": 1.5, "seed": 1}
    done = client.chat.completions.create(**asked, n=2)
    for choice in done.choices:
        (call,) = choice.message.tool_calls
        check(call.function.name, call.function.arguments)
        assert (choice.message.content, choice.finish_reason, call.type) == (None, "tool_calls", "function")
    assert len({choice.message.tool_calls[0].id for choice in done.choices}) == 2
    chunks = [*client.chat.completions.create(**asked, stream=True)]
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert (call.index, call.function.name) == (0, "get_weather")
    assert call.function.arguments == done.choices[0].message.tool_calls[0].function.arguments
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("form", FORMS)
def test_langchains_tools_go_round(address: str, form: Form) -> None:
    pytest.importorskip("llguidance")
    settings: dict[str, Any] = {"model": form, "base_url": address, "api_key": "none", "max_completion_tokens": 200}
    chat = ChatOpenAI(**settings, temperature=1, seed=2)
    conversation: list[BaseMessage] = [HumanMessage("Weather in Bonn?")]
    forced = chat.bind_tools(ASKED, tool_choice="required", parallel_tool_calls=False)
    answer = forced.invoke(conversation)
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert call["name"] in TOOLS
    conversation += [answer, ToolMessage("Sunny", tool_call_id=call["id"])]
    after = chat.bind_tools(ASKED).invoke(conversation)
    assert after.content or after.tool_calls
    streamed: Any = None
    for chunk in forced.stream(conversation):
        streamed = chunk if streamed is None else streamed + chunk
    assert [call["name"] in TOOLS for call in streamed.tool_calls] == [True]


def test_what_cannot_be_called_is_a_400_that_names_the_field(client: Any) -> None:
    for field, more in (
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": ASKED}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tool_choice": "perhaps", "tools": ASKED}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools", {"tools": [ASKED[0], ASKED[0]]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": 1}}}]}),
        ("response_format", {"tools": ASKED, "response_format": {"type": "json_object"}}),
        ("messages", {"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}, *USER]}),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": "tagged", "messages": USER, **more})
        assert caught.value.param == field


def test_a_schema_that_no_call_can_follow_is_a_400_only_where_it_must_be_followed(client: Any) -> None:
    pytest.importorskip("llguidance")
    tools = [{"type": "function", "function": {"name": "a", "parameters": {"properties": {"b": {"type": "word"}}}}}]
    asked = {"model": "lines", "messages": USER, "tools": tools, "max_tokens": 2}
    assert client.chat.completions.create(**asked).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="tools") as caught:
        client.chat.completions.create(**asked, tool_choice="required")
    assert caught.value.param == "tools"


TAGGED_CALL = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
THOUGHT = f"<think>\n{TAGGED_CALL}</think>"
NO_VALUE = "<tool_call>ping<arg_key>a</arg_key></tool_call>"
LINES_CALL = 'get_weather\n{"city": "Bonn", "days": 3}'
GIVEN = {"city": "Bonn", "days": 3}
ANSWERS: list[tuple[Form, str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("tagged", f"I look.\n{TAGGED_CALL}\n", "I look.", [("get_weather", GIVEN)]),
    ("tagged", f"{TAGGED_CALL}\n<tool_call>ping</tool_call>", "", [("get_weather", GIVEN), ("ping", {})]),
    ("tagged", f"{THOUGHT}{TAGGED_CALL}", THOUGHT, [("get_weather", GIVEN)]),
    ("tagged", "<tool_call>unknown\n</tool_call> <b\n", "<tool_call>unknown\n</tool_call> <b\n", []),
    ("tagged", NO_VALUE, NO_VALUE, []),
    ("tagged", "<tool_call>ping and then nothing", "<tool_call>ping and then nothing", []),
    ("lines", f"\n{LINES_CALL}", "", [("get_weather", GIVEN)]),
    ("lines", f"{LINES_CALL}\n<|assistant|>ping\n{{}}", "", [("get_weather", GIVEN), ("ping", {})]),
    ("lines", f"I look.\n{LINES_CALL}", "I look.", [("get_weather", GIVEN)]),
    ("lines", f"I {LINES_CALL}", f"I {LINES_CALL}", []),
    ("lines", "\nping is a word\n", "\nping is a word\n", []),
    ("lines", 'ping\n{"a": NaN}', 'ping\n{"a": NaN}', []),
    ("lines", 'ping\n{"a": [', 'ping\n{"a": [', []),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("form", "text", "shown", "calls"), ANSWERS)
def test_calls_are_told_from_text_however_it_comes(
    form: Form, text: str, shown: str, calls: list[tuple[str, dict[str, Any]]], size: int
) -> None:
    reader = call_reader(form, TOOLS, thinks=False)
    taken = [reader.add(text[start : start + size]) for start in range(0, len(text), size)]
    rest, unfinished = reader.finish(cut=False)
    assert ("".join(piece for piece, _ in taken) + rest, unfinished) == (shown, ())
    assert [(call.name, json.loads(call.arguments)) for _, found in taken for call in found] == calls


@pytest.mark.parametrize(
    ("form", "text", "shown", "arguments"),
    [
        ("tagged", TAGGED_CALL[: TAGGED_CALL.index("</arg_value>\n</tool_call>")], "", '{"city": "Bonn"'),
        ("tagged", "I look.\n<tool_call>get_weather\n<arg_key>ci", "I look.", "{"),
        ("tagged", "<tool_call>get_wea", "<tool_call>get_wea", None),
        ("tagged", "<tool_call>ping", "<tool_call>ping", None),  # perhaps of "ping_all"
        ("tagged", "<think>\n<tool_call>get_weather\n", "<think>\n<tool_call>get_weather\n", None),
        ("tagged", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>get_weather", "", "{"),
        ("lines", LINES_CALL[:-4], "", '{"city": "Bonn", "days"'),
        ("lines", "I look.\nget_weather\n{", "I look.", "{"),
        ("lines", "get_wea", "get_wea", None),
        ("lines", "I get_weather\n{", "I get_weather\n{", None),
    ],
)
def test_a_call_that_the_limit_cuts_is_a_call_with_what_it_has(
    form: Form, text: str, shown: str, arguments: str | None
) -> None:
    """As OpenAI's: the reason to end is "length", and the arguments are no whole JSON."""
    reader = call_reader(form, TOOLS, thinks=False)
    pieces = [reader.add(character) for character in text]
    rest, calls = reader.finish(cut=True)
    assert "".join(piece for piece, _ in pieces) + rest == shown
    assert [(call.name, call.arguments) for call in calls] == ([("get_weather", arguments)] if arguments else [])


@pytest.mark.parametrize("form", FORMS)
def test_a_limit_cuts_a_call_and_says_so(client: Any, form: Form) -> None:
    pytest.importorskip("llguidance")
    asked = {"model": form, "messages": USER, "tools": ASKED, "tool_choice": NAMED, "temperature": 1.5, "seed": 1}
    for limit in range(8, 40, 8):
        (choice,) = client.chat.completions.create(**asked, max_tokens=limit).choices
        if choice.message.tool_calls:
            break
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("length", None, "get_weather")
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)
    chunks = [*client.chat.completions.create(**asked, max_tokens=limit, stream=True)]
    (streamed,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert streamed.function.arguments == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "length"


def test_arguments_have_the_types_of_their_schema() -> None:
    properties = {"text": {"type": "string"}, "number": {"type": "number"}, "any": {}}
    reader = call_reader("tagged", {"f": Tool("f", {"properties": properties})}, thinks=False)
    pairs = {"text": "12", "number": "12", "any": "not JSON"}
    body = "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in pairs.items())
    _, (call,) = reader.add(f"<tool_call>f{body}</tool_call>")
    assert json.loads(call.arguments) == {"text": "12", "number": 12, "any": "not JSON"}


def test_calls_and_results_reach_a_template_in_its_form() -> None:
    call: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "ping", "arguments": '{"a": 1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "pong"},
    ]
    objects = with_calls(messages, TAGGED_TEMPLATE)
    assert objects[0]["tool_calls"][0]["function"] == {"name": "ping", "arguments": {"a": 1}}
    assert objects[1] == messages[1]
    assert with_calls(messages, LINES_TEMPLATE) == [
        {"role": "assistant", "metadata": "ping", "content": '{"a": 1}'},
        {"role": "observation", "content": "pong"},
    ]
    call["function"]["arguments"] = "{"
    with pytest.raises(ApiError, match="JSON object"):
        with_calls(messages, LINES_TEMPLATE)


def test_a_grammar_tells_text_from_calls_only_where_tags_are_tokens() -> None:
    assert tool_grammar(TOOLS, "tagged", TAGGED_TEMPLATE, {}, must=False, many=True) is None
    assert "start: call+" in str(tool_grammar(TOOLS, "tagged", TAGGED_TEMPLATE, {}, must=True, many=True))
    free = str(tool_grammar(TOOLS, "tagged", TAGGED_TEMPLATE, {"<tool_call>": 1, "<think>": 2}, must=False, many=False))
    assert "start: free | free call\n" in free
    assert "<[2]>" in free  # a thought is text, and the tag of a call is none
    assert r"ping\n" in free
    tight = TAGGED_TEMPLATE.replace("</arg_key>\n", "</arg_key>")  # as from GLM-4.7 on
    assert r"ping\n" not in str(tool_grammar(TOOLS, "tagged", tight, {}, must=True, many=False))
