"""Pictures by addresses of the web: from allowed hosts alone, bounded in size and time, never from within."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.runtimes.serve import media
from edgeglm.runtimes.serve.bodies import Bodies
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.media import Media, MediaError, fetch, is_public, web_pictures
from tests.cli.commands import check_failure, end, start
from tests.runtimes.serve.conftest import SCREENS, question, serving

HERE = frozenset({"127.0.0.1"})


class Pictures(http.server.BaseHTTPRequestHandler):
    """Answers each path in its own way; `asked` are the paths that came."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        getattr(self, f"_{self.path.partition('?')[0].strip('/')}")()

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _screen(self) -> None:
        self._send((SCREENS / "0001.webp").read_bytes())

    def _missing(self) -> None:
        self._send(b"secret", 404)

    def _moved(self) -> None:
        self._send(b"", 302, Location="/screen")

    def _around(self) -> None:
        self._send(b"", 302, Location="/around")

    def _inward(self) -> None:
        self._send(b"", 302, Location=f"http://localhost:{self.server.server_port}/screen")  # type: ignore[attr-defined]

    def _file(self) -> None:
        self._send(b"", 302, Location="file:///etc/passwd")

    def _large(self) -> None:
        self._send(bytes(3000))

    def _text(self) -> None:
        self._send(b"root:x:0:0")

    def _slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """A server of pictures on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/screen", "/moved", "/screen?a=b#c"])
def test_what_an_allowed_host_has_is_fetched(web: str, path: str) -> None:
    assert fetch(web + path, HERE) == (SCREENS / "0001.webp").read_bytes()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/missing", "answered with 404"),
        ("/around", "more than 3 redirects"),
        ("/inward", "--allowed-media-domains does not name"),
        ("/file", "no address of http"),
        ("/screen\r\nX: y", "answered with|cannot be fetched"),
    ],
)
def test_what_cannot_be_had_says_why(web: str, path: str, why: str) -> None:
    with pytest.raises(MediaError, match=why) as caught:
        fetch(web + path, HERE)
    assert "secret" not in str(caught.value)


def test_size_and_time_are_bounded(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_BYTES", 2000)
    with pytest.raises(MediaError, match="is larger than"):
        fetch(f"{web}/large", HERE)
    monkeypatch.setattr(media, "SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(MediaError, match=r"takes more than 0\.5 seconds"):
        fetch(f"{web}/slow", HERE)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254"],
)
def test_any_host_is_any_public_one(web: str, host: str) -> None:
    Pictures.asked.clear()
    with pytest.raises(MediaError, match=r"not public|cannot be fetched"):
        fetch(f"http://{host}:{web.rpartition(':')[2]}/screen", frozenset("*"))
    assert Pictures.asked == []


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "file:///etc/passwd", "http://user:word@127.0.0.1/x", "http:///x", "gopher://x"]
)
def test_other_addresses_are_none(url: str) -> None:
    with pytest.raises(MediaError, match="is at no address"):
        fetch(url, HERE)


def test_public_addresses_are_told_from_others() -> None:
    assert all(map(is_public, ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::8.8.8.8"]))
    inside = ["10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "fe80::1%eth0", "fd00::1", "224.0.0.1", "::"]
    assert not any(map(is_public, [*inside, "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::127.0.0.1"]))


def test_only_pictures_are_places() -> None:
    named = {"type": "image_url", "image_url": {"url": "HTTP://a/x"}}
    plain = {"type": "image", "image": "https://a/y"}
    others: list[Any] = [
        {"type": "text", "text": "http://a"},
        {"type": "image_url", "image_url": {"url": "data:,x"}},
        1,
    ]
    messages = [{"role": "user", "content": [named, plain, *others]}, {"content": "http://a"}, 2]
    assert list(web_pictures(messages)) == [(named["image_url"], "url"), (plain, "image")]


def test_fetched_pictures_count_until_their_request_begins(web: str) -> None:
    size = len((SCREENS / "0001.webp").read_bytes())
    bodies = Bodies(most=size)
    taken = Media(["127.0.0.1"], bodies)

    def messages(count: int) -> list[Any]:
        return [{"content": [{"type": "image_url", "image_url": {"url": f"{web}/screen"}} for _ in range(count)]}]

    async def ask(count: int) -> None:
        async with taken.fetched(messages(count)):
            assert bodies.held == size

    asyncio.run(ask(1))
    assert bodies.held == 0
    for count in (2, 17):
        with pytest.raises(ApiError, match="images"):
            asyncio.run(ask(count))
    assert bodies.held == 0


def post(address: str, url: str) -> tuple[int, dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Select OK"}]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 40}
    return ask(address, body)


def ask(address: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def test_a_picture_of_the_web_is_answered_as_its_data_url(exact: Path, web: str) -> None:
    with serving(exact, "--allowed-media-domains", "127.0.0.1") as (_, address):
        status, answer = post(address, f"{web}/screen")
        _, known = ask(address, {"messages": question("Select OK", 1), "temperature": 0, "max_tokens": 40})
        assert (status, answer["choices"]) == (200, known["choices"])
        for path, why in (("/missing", "404"), ("/text", "no WebP, PNG or JPEG"), ("/inward", "does not name")):
            status, error = post(address, web + path)
            assert (status, error["param"]) == (400, "messages")
            assert why in error["message"]
            assert "root:" not in error["message"]


def test_nothing_is_fetched_unless_it_is_allowed(address: str, web: str) -> None:
    Pictures.asked.clear()
    status, error = post(address, f"{web}/screen")
    assert (status, Pictures.asked) == (400, [])
    assert "nothing is fetched" in error["message"]


def test_a_host_that_is_none_is_one_line(tmp_path: Path) -> None:
    check_failure(end(start("serve", tmp_path, "--allowed-media-domains", "http://a/")), 2, "is no host")
