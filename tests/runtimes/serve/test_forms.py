"""Forms in which clients write the same thing: schemas, keys, images, tools and ids, over HTTP."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.runtimes.serve.tools import read_tools, with_calls
from edgeglm.runtimes.text.messages import normalize
from tests.runtimes.serve.conftest import question, serving
from tests.runtimes.serve.test_server import post

KEYS = ("key-1", "schlüsselà", "鍵")  # of ASCII, of Latin-1, and of neither


@pytest.fixture(scope="module")
def keyed(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_bytes("\r\n".join(KEYS).encode())
    with serving(exact, "--api-key-file", file) as (_, url):
        yield url


def ask(address: str, **more: object) -> tuple[int, Any]:
    fields = {"messages": question("Select OK"), "temperature": 0, "max_tokens": 40, **more}
    return post(address, "/v1/chat/completions", json.dumps(fields).encode())


def test_a_key_may_come_in_utf_8_and_in_latin_1(keyed: str) -> None:
    def status(key: bytes) -> int:
        with closing(http.client.HTTPConnection(urlsplit(keyed).netloc, timeout=60)) as connection:
            connection.putrequest("GET", "/v1/models")
            connection.putheader("Authorization", b"Bearer " + key)
            connection.endheaders()
            return connection.getresponse().status

    assert [status(key.encode()) for key in KEYS] == [200] * 3
    assert [status(key.encode("latin-1", "ignore")) for key in KEYS] == [200, 200, 401]
    assert {status(key) for key in (b"", b"schl", b"\xff", b"key-1\xa0")} == {401}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"schema": {"const": 7}}},
        {"type": "json_schema", "schema": {"const": 7}},
        {"type": "json_object", "schema": {"const": 7}},
        {"type": "json_schema", "json_schema": {"schema": {"oneOf": [{"const": 7}], "discriminator": {}}}},
    ],
)
def test_a_schema_is_followed_wherever_clients_write_it(address: str, form: object) -> None:
    pytest.importorskip("llguidance")
    status, done = ask(address, response_format=form)
    assert (status, done["choices"][0]["message"]["content"]) == (200, "7")


def test_a_schema_that_is_lost_within_an_answer_is_an_error(address: str) -> None:
    pytest.importorskip("llguidance")
    links = {f"{number}": {"anyOf": [{"$ref": f"#/$defs/{number + 1}"}, {"const": 2}]} for number in range(3000)}
    schema = {"$defs": {**links, "3000": {"const": 1}}, "$ref": "#/$defs/0"}
    status, told = ask(address, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert status == 400
    assert told["param"] == "response_format"
    assert "too complex for this answer" in told["message"]
    assert ask(address, response_format={"type": "json_schema", "json_schema": {"schema": {"const": 7}}})[0] == 200


def test_bytes_of_tokens_add_up_where_tokens_are_parts_of_characters(address: str) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"schema": {"const": "é数😀"}}}
    choice = ask(address, response_format=form, logprobs=True, top_logprobs=1)[1]["choices"][0]
    scores = choice["logprobs"]["content"]
    assert any("\ufffd" in score["token"] for score in scores)
    data = b"".join(bytes(score["bytes"]) for score in scores if not score["token"].startswith("<|"))
    assert data.decode() == choice["message"]["content"] == '"é数😀"'
    assert all(likely["bytes"] is not None for score in scores for likely in score["top_logprobs"])


def test_an_empty_id_is_no_session(address: str) -> None:
    for fields in ({"user": ""}, {"user": "someone"}):
        assert ask(address, max_tokens=1, **fields)[0] == 200
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)) as connection:
        for name, status in (("", 404), ("someone", 200)):
            connection.request("DELETE", f"/v1/sessions/{name}")
            with connection.getresponse() as response:
                response.read()
            assert response.status == status


def test_a_limit_and_an_address_are_named_in_full(address: str) -> None:
    assert "may be 1 to 2147483648" in ask(address, max_tokens=0)[1]["message"]
    assert "begin with /v1" in str(post(address, "/chat/completions", b"{}")[1]["message"])


def test_base64_may_have_the_letters_of_urls() -> None:
    data = bytes(range(256))
    for encoded in (
        base64.b64encode(data),
        base64.urlsafe_b64encode(data),
        base64.urlsafe_b64encode(data).rstrip(b"="),
    ):
        url = f"data:image/png;base64,{encoded.decode()}"
        (message,) = normalize([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
        assert message["content"][0]["image"] == data


def test_null_is_what_is_not_there() -> None:
    parameters = {"type": "object", "properties": None, "required": None}
    tools = read_tools([{"type": "function", "function": {"name": "a", "description": None, "parameters": parameters}}])
    assert tools["a"].parameters == {"type": "object"}
    for function in ({"name": "a", "arguments": None}, {"name": "a"}, {"name": "a", "arguments": ""}):
        said = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}]
        (turn,) = with_calls(said, "tool_calls")
        assert turn["tool_calls"][0]["function"]["arguments"] == {}
