"""Web pages reach a server that listens on this machine alone only if its user names them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.errors import EdgeglmError
from edgeglm.runtimes.serve.pages import is_of_this_machine
from edgeglm.runtimes.serve.program import serve
from tests.runtimes.serve.conftest import question, serving

PAGE, OTHER = "http://localhost:3000", "https://evil.example"
BODY = json.dumps({"messages": question("Select OK"), "temperature": 0, "max_tokens": 1})


@pytest.fixture(scope="module")
def named(exact: Path) -> Iterator[str]:
    """The address of a server that one page may ask."""
    with serving(exact, "--cors", PAGE) as (_, url):
        yield url


def ask(address: str, method: str = "POST", path: str = "/v1/chat/completions", **headers: str) -> int:
    """Return the status of a request with these headers; an error has OpenAI's form."""
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)) as connection:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, BODY if method == "POST" else None, sent)
        with connection.getresponse() as response:
            told = json.loads(response.read())
    assert response.status == 200 or set(told["error"]) == {"message", "type", "param", "code"}
    return response.status


def test_a_page_whose_name_was_given_this_address_is_refused(address: str) -> None:
    assert ask(address, Host="evil.example:8000") == 403
    assert ask(address, "GET", "/v1/models", Host="127.0.0.1.evil.example") == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "board", "host.docker.internal"):
        assert ask(address, Host=host) == 200


def test_a_target_may_be_a_whole_address_which_tells_the_host(address: str) -> None:
    here = urlsplit(address).netloc
    for path in (f"http://{here}/v1/models", f"HTTP://{here}/v1/models?a=b", f"http://{here}/health"):
        assert ask(address, "GET", path) == 200
    assert ask(address, path=f"http://{here}/v1/chat/completions") == 200
    assert ask(address, "GET", f"http://{here}") == 404
    for host in ("evil.example", "%D7%90.example", "user@evil.example:1"):
        assert ask(address, "GET", f"http://{host}/v1/models", Host="localhost") == 403


def test_a_page_of_another_origin_is_refused(address: str) -> None:
    for origin in (OTHER, "null", "http://127.0.0.1:3000"):
        assert ask(address, Origin=origin, Sec_Fetch_Site="cross-site") == 403
    assert ask(address, Origin=f"http://{urlsplit(address).netloc}") == 200
    # Behind a proxy that tells another host, the browser says it.
    assert ask(address, Origin="https://ui.example", Sec_Fetch_Site="same-origin") == 200


def test_a_page_that_was_named_may_ask(named: str) -> None:
    assert ask(named, Origin=PAGE) == 200
    assert ask(named, Origin=OTHER) == 403


def test_a_browser_asks_for_a_page_that_was_named(named: str) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
    with closing(http.client.HTTPConnection(urlsplit(named).netloc, timeout=60)) as connection:
        connection.request("OPTIONS", "/v1/chat/completions", headers=asked)
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Private-Network"] == "true"


@pytest.mark.parametrize("origin", [OTHER, "chrome-extension://abc", "tauri://localhost", "null"])
def test_a_page_that_is_refused_is_told_an_option_that_is_taken(address: str, tmp_path: Path, origin: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)) as connection:
        connection.request("GET", "/v1/models", headers={"Origin": origin})
        why = json.loads(connection.getresponse().read())["error"]["message"]
    named = why.rpartition("--cors ")[2].strip("'")
    with pytest.raises(EdgeglmError) as caught:
        serve([str(tmp_path), "--cors", named])
    assert caught.value.what != "serve"  # the option is right, and the folder is no bundle


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("LOCALHOST.", True), ("a.localhost", True), ("192.168.1.7:8000", True), ("[fe80::1]", True), ("", True),
        ("evil.example.", False), ("x.local.evil.example", False), ("[", False), ("a@evil.example", False),
    ],
)  # fmt: skip
def test_names_of_this_machine(host: str, is_own: bool) -> None:
    assert is_of_this_machine(host) is is_own
