"""Odd requests that clients really send, and what a client may be told: over HTTP, as OpenAI's clients see it."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("openai")

import openai

from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.bundles import Bundles
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.models import Models
from edgeglm.runtimes.serve.release import Idle
from edgeglm.runtimes.serve.roles import in_form
from tests.runtimes.serve.conftest import question, serving
from tests.runtimes.serve.test_server import JSON, get, post
from tests.runtimes.serve.test_tools import rewrite

# As GLM-4.1V's template: three roles, and nothing of any other.
THREE_ROLES = """[gMASK]<sop>{% for m in messages %}{% if m.role == 'system' %}<|system|>
{{ m.content }}{% elif m.role == 'user' %}<|user|>
{{ m.content if m.content is string else m.content[0].text }}{% elif m.role == 'assistant' %}<|assistant|>
{{ m.content }}{% endif %}{% if m.content == 'refuse' %}{{ raise_exception('not that') }}{% endif %}{% endfor %}\
<|assistant|>
"""
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=address, api_key="none", timeout=120, max_retries=0)


@pytest.fixture(scope="module")
def three_roles(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a bundle whose template knows three roles."""
    bundle = Path(shutil.copytree(exact, tmp_path_factory.mktemp("roles") / "three"))
    rewrite(bundle, "tokenizer/chat_template.jinja", THREE_ROLES)
    with serving(bundle) as (_, url):
        yield url


def ask(address: str, path: str = CHAT, **more: object) -> tuple[int, dict[str, Any]]:
    fields = {"messages": question("Select OK"), "temperature": 0, "max_tokens": 2, **more}
    if path == TEXT:
        del fields["messages"]
    status, told = post(address, path, json.dumps(fields).encode())
    return status, dict(told)


def test_whole_numbers_may_be_written_as_dart_and_gson_do(address: str) -> None:
    floats: dict[str, Any] = {
        "max_tokens": 2.0,
        "max_completion_tokens": 2.0,
        "seed": 1.0,
        "n": 1.0,
        "top_k": 5.0,
        "top_p": 1,
    }
    assert ask(address, **floats)[1]["usage"]["completion_tokens"] == 2
    assert ask(address, TEXT, prompt="Hello", logprobs=1.0)[0] == 200
    wrong: tuple[dict[str, Any], ...] = ({"max_tokens": 2.5}, {"max_tokens": 2.0, "seed": "1"}, {"n": True})
    for fields in wrong:
        status, error = ask(address, **fields)
        assert (status, error["param"]) == (400, [*fields][-1])


def test_a_turn_is_not_continued_in_silence(address: str) -> None:
    status, error = ask(address, continue_final_message=True)
    assert (status, error["param"]) == (400, "continue_final_message")


def test_values_that_change_nothing_are_taken(client: Any) -> None:
    asked: dict[str, Any] = {"messages": question("Select OK", 1), "model": "x", "max_tokens": 12}
    greedy = client.chat.completions.create(**asked, temperature=0).choices[0].message.content
    likeliest = client.chat.completions.create(**asked, temperature=2, top_p=0, top_logprobs=0, logprobs=False)
    assert likeliest.choices[0].message.content == greedy


@pytest.mark.parametrize("blank", [[], [{"type": "text", "text": ""}], [{"type": "text", "text": " \n"}]])
def test_an_image_may_be_sent_without_a_word(client: Any, blank: list[dict[str, str]]) -> None:
    image = question("x", 1)[0]["content"][0]
    done = client.chat.completions.create(
        model="x", messages=[{"role": "user", "content": [image, *blank]}], temperature=0, max_tokens=2
    )
    assert done.usage.completion_tokens == 2


def test_a_tool_may_return_nothing(client: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "tap", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    for content in ("", [], [{"type": "text", "text": ""}]):
        result = {"role": "tool", "tool_call_id": "1", "content": content}
        messages: Any = [*question("Tap"), turn, result]
        assert client.chat.completions.create(model="x", messages=messages, max_tokens=1).choices
    with pytest.raises(openai.BadRequestError, match="the prompt: is empty"):
        client.chat.completions.create(model="x", messages=question(""), max_tokens=1)


def test_a_developers_message_is_a_systems(three_roles: str) -> None:
    counts = [
        post(
            three_roles,
            "/tokenize",
            json.dumps({"messages": [{"role": role, "content": "Tap"}, *question("OK")]}).encode(),
        )
        for role in ("system", "developer")
    ]
    assert counts[0] == counts[1]
    assert counts[0][0] == 200


def test_a_role_that_the_template_would_drop_is_a_400(three_roles: str) -> None:
    for role in ("tool", "assitant"):
        status, error = ask(three_roles, messages=[*question("OK"), {"role": role, "content": "42"}])
        assert (status, error["param"]) == (400, "messages")
        assert f"has no role '{role}'" in error["message"]
    many = [{"role": f"role {number}", "content": "x"} for number in range(2000)]
    assert "has no role" in ask(three_roles, messages=many)[1]["message"]


def test_roles_are_those_of_the_template(exact: Path) -> None:
    with Runner(exact) as runner:  # whose template prints any role
        said = [{"role": "developer", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "x", "content": "c"}]
        for template, roles in (("{{ role }}", ["system", "observation", "x"]), ("developer", ["developer"])):
            assert [each["role"] for each in in_form(said, runner.chat, template)][: len(roles)] == roles


def test_models_are_found_by_name(exact: Path) -> None:
    def models(*names: str) -> Models:
        return Models(Bundles(dict.fromkeys(names, exact), Runner, None, Idle(), time.monotonic))

    assert models("a").find("whatever") == models("a").find(None) == "a"
    assert models("a", "b").find("b") == "b"
    for name in ("c", None):
        with pytest.raises(ApiError, match="there is a, b"):
            models("a", "b").find(name)


def test_an_error_names_no_folder_of_the_server(three_roles: str, address: str) -> None:
    for status, error in (
        ask(three_roles, messages=question("refuse")),
        ask(address, TEXT, prompt=[1_000_000]),
        ask(address, TEXT, prompt=[-1]),
    ):
        assert status == 400
        assert "/" not in error["message"]


@pytest.mark.parametrize("prompt", [[5_000], [-1], "<|image|>", "a " * 9000])
def test_an_error_of_a_text_names_the_prompt(address: str, prompt: object) -> None:
    status, error = ask(address, TEXT, prompt=prompt)
    assert (status, error["param"]) == (400, "prompt")


def test_a_wrong_image_is_told_what_can_be_sent(address: str) -> None:
    for url in ("data:image/png;base64,%%%", "http://127.0.0.1:9/x.png", "data:"):
        image = {"type": "image_url", "image_url": {"url": url}}
        status, error = ask(address, messages=[{"role": "user", "content": [image]}])
        assert status == 400
        assert "path" not in error["message"]
        assert "send a data URL" in error["message"]


def test_a_body_that_is_compressed_is_a_415_that_says_so(address: str) -> None:
    body = json.dumps({"messages": question("OK")}).encode()
    status, error = post(address, CHAT, gzip.compress(body), {**JSON, "Content-Encoding": "gzip"})
    assert (status, "gzip" in str(error["message"])) == (415, True)
    assert post(address, "/tokenize", body, {**JSON, "Content-Encoding": "identity"})[0] == 200


def test_models_are_listed_behind_a_slash_too(address: str) -> None:
    assert json.loads(get(address, "/v1/models/")) == json.loads(get(address, "/v1/models"))


def test_a_wrong_method_says_which_are_right(address: str) -> None:
    command = ["curl", "-si", "-X", "PUT", f"{address}/chat/completions"]
    head = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.lower()
    assert " 405 " in head.splitlines()[0]
    assert "allow: post" in head


def test_a_sessions_id_may_be_beyond_ascii(address: str) -> None:
    for name, encoding in (("Jürgen 号", "utf-8"), ("Jürgen", "latin-1")):
        given = urllib.request.Request(
            f"{address}/chat/completions",
            json.dumps({"messages": question("Select OK"), "max_tokens": 1}).encode(),
            {"Content-Type": "application/json", "X-Session-Id": name.encode(encoding).decode("latin-1")},
        )
        urllib.request.urlopen(given, timeout=60).close()
        ended = urllib.request.Request(f"{address}/sessions/{quote(name)}", method="DELETE")
        with urllib.request.urlopen(ended, timeout=60) as response:
            assert json.loads(response.read())["id"] == name


def test_a_session_may_have_a_long_id(address: str) -> None:
    name = "a" * 2000
    assert ask(address, user=name)[0] == 200
    command = [
        sys.executable,
        "-c",
        "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], method='DELETE'))",
    ]
    for code in (0, 1):  # it is there once
        done = subprocess.run([*command, f"{address}/sessions/{name}"], capture_output=True, check=False, timeout=60)
        assert done.returncode == code or code == 1


def test_nothing_that_clients_send_fills_the_log(exact: Path) -> None:
    upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"]
    with serving(exact, within=lambda command: ["sh", "-c", 'exec "$@" 2>&1', "sh", *command]) as (process, url):
        subprocess.run(["curl", "-s", *upgrade, f"{url}/models"], capture_output=True, check=True, timeout=60)
        subprocess.run(["curl", "-s", "-X", "B\x01D", f"{url}/models"], capture_output=True, check=False, timeout=60)
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.read() == b""
