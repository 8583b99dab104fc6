"""The server under the clients that people use: openai, LangChain, and a phone agent's exact wire form."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("openai")
pytest.importorskip("langchain_openai")

import httpx
import openai
from langchain_openai import ChatOpenAI
from PIL import Image

from edgeglm.export.demo.client import read_action, split_answer
from edgeglm.export.demo.episodes import Conversation
from edgeglm.export.demo.prompts import client_prompt
from edgeglm.runtimes.core.runner import Runner
from tests.runtimes.demo import taps_ok
from tests.runtimes.serve.conftest import SCREENS, question

GREEDY: dict[str, Any] = {"model": "autoglm-phone-9b", "temperature": 0}


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=address, api_key="none", timeout=120, max_retries=0)


@pytest.fixture(scope="module")
def select_ok(exact: Path) -> str:
    """The runner's answer to "Select OK" on the first screen; `</answer>` is an end token, and no text."""
    with Runner(exact) as runner:
        return runner.answer(question("Select OK", 1)).text


def test_an_answer_is_the_runners_up_to_what_ends_it(client: Any, select_ok: str) -> None:
    done = client.chat.completions.create(messages=question("Select OK", 1), max_tokens=3000, **GREEDY)
    assert done.choices[0].message.content == select_ok
    # As Open-AutoGLM's client parses it: to the end of the text.
    action = read_action(split_answer(select_ok)[1])
    assert taps_ok({"action": action.type, **action.arguments})
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.object == "chat.completion"


def test_a_stream_has_the_same_text_its_role_first_and_its_usage_last(client: Any, select_ok: str) -> None:
    asked: dict[str, Any] = {"messages": question("Select OK", 1), "stream": True, **GREEDY}
    asked["stream_options"] = {"include_usage": True}
    chunks, again = ([*client.chat.completions.create(**asked)] for _ in range(2))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == select_ok
    assert (deltas[0].role, [delta.role for delta in deltas[1:]]) == ("assistant", [None] * (len(deltas) - 1))
    assert deltas[0].content  # the client's time to the first token is that
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 10
    assert again[-1].usage.prompt_tokens_details.cached_tokens == chunks[-1].usage.prompt_tokens - 1


def test_a_limit_cuts_an_answer(client: Any, select_ok: str) -> None:
    done = client.chat.completions.create(messages=question("Select OK", 1), max_completion_tokens=3, **GREEDY)
    assert done.choices[0].finish_reason == "length"
    assert done.usage.completion_tokens == 3
    assert select_ok.startswith(done.choices[0].message.content)


def test_stop_texts_end_an_answer_and_are_not_part_of_it(client: Any, select_ok: str) -> None:
    done = client.chat.completions.create(messages=question("Select OK", 1), stop=["element", "never"], n=2, **GREEDY)
    assert [choice.message.content for choice in done.choices] == [select_ok.partition("element")[0]] * 2
    assert [choice.index for choice in done.choices] == [0, 1]


def test_reasoning_comes_apart_where_it_is_asked_for(client: Any, select_ok: str) -> None:
    asked = {"messages": question("Select OK", 1), "extra_body": {"return_reasoning": True}}
    answer = client.chat.completions.create(**asked, **GREEDY).choices[0].message
    assert f"<think>{answer.reasoning_content}</think>{answer.content}" == select_ok
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True, **GREEDY)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == answer.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == answer.content


def test_logprobs_are_those_of_the_chosen_tokens(client: Any, select_ok: str) -> None:
    done = client.chat.completions.create(messages=question("Select OK", 1), logprobs=True, top_logprobs=3, **GREEDY)
    scores = done.choices[0].logprobs.content
    assert "".join(score.token for score in scores).startswith(select_ok)
    for score in scores:
        assert score.logprob <= 0
        assert score.top_logprobs[0].token == score.token  # greedy
        assert len(score.top_logprobs) == 3


def test_a_seed_repeats_what_is_drawn(client: Any) -> None:
    asked = {"messages": question("Select OK", 1), "model": "x", "temperature": 2.0, "max_tokens": 12}
    first, again, other = (
        client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_a_text_is_completed_without_the_chat_template(client: Any) -> None:
    asked: dict[str, Any] = {"prompt": "<think>Tap OK.</think><answer>do(", "max_tokens": 4, **GREEDY}
    done = client.completions.create(**asked, logprobs=1)
    assert 0 < len(done.choices[0].logprobs.tokens) == done.usage.completion_tokens <= 4
    scores = done.choices[0].logprobs
    assert scores.text_offset == [0, *accumulate(map(len, scores.tokens))][:-1]
    chunks = [*client.completions.create(**asked, stream=True, logprobs=1)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == done.choices[0].text
    told = [chunk.choices[0].logprobs.text_offset for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for offsets in told for offset in offsets] == scores.text_offset


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 9),
        ("top_p", -0.1),
        ("n", 1000),
        ("frequency_penalty", 3),
        ("top_logprobs", 2),
        ("stop", [""]),
        ("logit_bias", {"1": 2}),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "word"}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}}),
        ("tools", [{"type": "function", "function": {"name": "tap"}}]),
        ("tool_choice", "required"),
        ("modalities", ["audio"]),
    ],
)
def test_what_is_not_supported_is_a_400_that_names_the_field(client: Any, field: str, value: object) -> None:
    asked = {"messages": question("Select OK"), "model": "x", field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.param == field
    assert field in caught.value.message


def test_speech_is_refused_once_it_was_sent_and_not_sent_again(client: Any) -> None:
    recording = ("speech.wav", bytes(8 << 20))
    with pytest.raises(openai.NotFoundError, match="/v1/audio/transcriptions: no bundle that can") as caught:
        client.audio.transcriptions.create(model="x", file=recording)
    assert caught.value.code == "not_supported"


def test_a_prompt_that_is_too_long_says_what_would_fit(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="together may have 8192") as caught:
        client.chat.completions.create(messages=question("Select " * 8192), **GREEDY)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x.png", "data:,x"])
def test_a_url_never_becomes_a_path_and_nothing_is_fetched(client: Any, url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Select OK"}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=[{"role": "user", "content": parts}], **GREEDY)
    assert "root:" not in caught.value.message


def test_models_have_their_window(client: Any, exact: Path) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == (exact.name, 8192)
    assert client.models.retrieve(exact.name).id == exact.name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_nobody_gets_anothers_answer(client: Any) -> None:
    asked = [(text, screen) for screen in (1, 2, 3) for text in ("Select OK", "Go back")] * 2
    alone = {
        each: client.chat.completions.create(messages=question(*each), **GREEDY).choices[0].message.content
        for each in dict.fromkeys(asked)
    }

    def ask(each: tuple[str, int]) -> str:
        stream = client.chat.completions.create(messages=question(*each), stream=True, **GREEDY)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(ask, asked)] == [alone[each] for each in asked]
    assert len(set(alone.values())) > 1


def test_langchain_works_unchanged(address: str, select_ok: str) -> None:
    settings: dict[str, Any] = {
        "model": "autoglm-phone-9b", "base_url": address, "api_key": "EMPTY", "temperature": 0, "max_tokens": 256,
        "extra_body": {"enable_thinking": False, "return_reasoning": False},
    }  # fmt: skip
    chat = ChatOpenAI(**settings)
    messages = question("Select OK", 1)
    assert chat.invoke(messages).content == select_ok

    async def stream() -> str:
        return "".join([str(chunk.content) async for chunk in chat.astream(messages)])

    assert asyncio.run(stream()) == select_ok


def tokens_so_far(address: str) -> dict[str, float]:
    """Return the tokens that the server has counted, by kind."""
    with urllib.request.urlopen(address.replace("/v1", "/metrics"), timeout=60) as response:
        lines = response.read().decode().splitlines()
    pattern = re.compile(r'edgeglm_tokens_total\{kind="(\w+)"\} (\S+)')
    return {match[1]: float(match[2]) for line in lines if (match := pattern.match(line))}


def test_open_autoglms_check_before_its_start_passes(client: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    done = client.chat.completions.create(
        model="autoglm-phone-9b", messages=messages, max_tokens=5, temperature=0.0, stream=False
    )
    assert done.choices


def test_open_autoglms_loop_in_its_exact_wire_form(address: str) -> None:
    """Its fields, a system prompt of its structure and length, whole screens as PNG, history without pictures."""
    sent: list[httpx.Request] = []
    with openai.DefaultHttpxClient(event_hooks={"request": [sent.append]}) as http_client:
        agent = openai.OpenAI(base_url=address, api_key="EMPTY", http_client=http_client, max_retries=0)
        system = client_prompt("en", date(2026, 11, 29))
        loop = Conversation(agent, "autoglm-phone-9b", system, "Select OK")
        shares = []
        for screen, app in ((1, ""), (2, "Settings"), (3, "Settings")):
            before = tokens_so_far(address)
            with Image.open(SCREENS / f"{screen:04d}.webp") as image:
                reply = loop.ask(image.convert("RGBA").resize((1080, 2400)), app)
            thought, action = split_answer(reply.content)
            assert "</answer>" not in reply.content
            assert thought
            assert read_action(action)
            assert loop.messages[-1]["content"] == f"<think>{thought}</think><answer>{action}</answer>"
            spent = {kind: count - before[kind] for kind, count in tokens_so_far(address).items()}
            shares.append(spent["cached"] / spent["prompt"])
    assert min(shares[1:]) > 0.75  # the system prompt and all turns but the last
    bodies = [json.loads(request.content) for request in sent]
    assert [request.headers["authorization"] for request in sent] == ["Bearer EMPTY"] * 3
    for number, body in enumerate(bodies):
        assert {name: value for name, value in body.items() if name != "messages"} == {
            "model": "autoglm-phone-9b", "stream": True, "max_tokens": 3000, "temperature": 0.0, "top_p": 0.85,
            "frequency_penalty": 0.2,
        }  # fmt: skip
        first, *turns, last = body["messages"]
        assert first == {"role": "system", "content": system}
        assert [message["role"] for message in turns] == ["user", "assistant"] * number
        assert all([part["type"] for part in message["content"]] == ["text"] for message in turns[::2])
        assert last["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
        head = "** Screen Info **" if number else "Select OK"
        app = "Settings" if number else "System Home"
        assert last["content"][1] == {"type": "text", "text": f'{head}\n\n{{"current_app": "{app}"}}'}


def test_an_answer_is_json_of_the_schema_that_is_asked_for(client: Any) -> None:
    pytest.importorskip("llguidance")
    person = {
        "type": "object",
        "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": person}}
    for more in ({"temperature": 0}, {"temperature": 2, "seed": 3, "logprobs": True, "n": 2}):
        done = client.chat.completions.create(messages=question("Who?"), model="x", response_format=form, **more)
        for choice in done.choices:
            answer = json.loads(choice.message.content)
            assert choice.finish_reason == "stop"
            assert answer.keys() == {"name", "age"}
            assert answer["name"] in ("Ann", "Bob")
            assert 1 <= answer["age"] <= 99
            assert not more.get("logprobs") or len(choice.logprobs.content) > 3
        assert done.usage.completion_tokens_details.model_passes < done.usage.completion_tokens or more.get("logprobs")
    limit: Any = {"type": "json_object"}
    done = client.chat.completions.create(
        messages=question("Who?"), model="x", response_format=limit, max_tokens=12, temperature=0
    )
    assert done.choices[0].message.content.startswith("{")
