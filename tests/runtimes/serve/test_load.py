"""A server under hostile requests, and under many clients of every kind at once."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("PIL")

from starlette.requests import Request
from starlette.types import Message

from benchmarks.hostile import Attack, attacks, fields, large_attacks, posted
from benchmarks.serve_load import Load, check, known_answers
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve import app, bodies
from edgeglm.runtimes.serve.answers import Delta, Started
from edgeglm.runtimes.serve.app import Service
from edgeglm.runtimes.serve.bodies import VALUE_BYTES, Bodies
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.jobs import Job, Outbox
from edgeglm.runtimes.serve.program import named
from edgeglm.runtimes.serve.release import Idle
from edgeglm.runtimes.serve.schedule import Claim
from edgeglm.runtimes.serve.schema import DetokenizeRequest
from tests.runtimes.serve.conftest import serving

REQUESTS, CONNECTIONS = 60, 16


def located(url: str) -> tuple[str, int]:
    """Return host and port of a URL."""
    split = urlsplit(url)
    return str(split.hostname), int(split.port or 0)


@pytest.mark.parametrize("attack", [*attacks(), *large_attacks()], ids=lambda attack: attack.name)
def test_a_hostile_request_has_its_status_and_harms_nobody(address: str, attack: Attack) -> None:
    assert check(attack, located(address)) == ""
    lives = Attack("lives", b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (200,))
    assert check(lives, located(address)) == ""


def test_a_check_tells_a_wrong_status_and_a_second_response(address: str) -> None:
    fine = posted(json.dumps(fields()).encode())
    assert "200, not (400,)" in check(Attack("fine", fine), located(address))
    two = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"GET / HTTP/1.1\r\n\r\n"
    assert "a second request" in check(Attack("two", two, (200,)), located(address))


@pytest.mark.parametrize("slots", ["1", "3"])
def test_each_of_many_clients_has_its_own_answer(exact: Path, slots: str) -> None:
    answers = known_answers(exact, 3)
    with (
        serving(exact, "--slots", slots, "--queue", "128") as (_, url),
        closing(Load(located(url), answers)) as load,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        list(pool.map(load.one, range(REQUESTS)))
        assert load.complaints == []
        load.answers = dict(zip(answers, [*answers.values()][1:] + [*answers.values()][:1], strict=True))
        assert load.one(2) == "question: WRONG"
        assert "ANOTHER'S answer" in load.complaints[0]


def request(data: bytes, headers: dict[str, str] | None = None) -> Request:
    """A request whose body comes in two pieces."""
    pieces = [data[: len(data) // 2], data[len(data) // 2 :]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


class Silent(Engine):
    """An engine that accepts a prompt, and says no more of itself."""

    def submit(self, bundle: str, work: Any, *_: object) -> Job:
        self.job = Job(bundle, work, Outbox(asyncio.get_running_loop()), Claim("text", "normal", 0.0))
        self.job.emit(Started(2))
        return self.job


def test_a_stream_has_signs_of_life_beside_its_answer(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SILENCE_SECONDS", 0.001)
    engine = Silent(named([exact]), Runner, waiting=1, idle=Idle(), max_ram=None)
    body = json.dumps({"prompt": "a b", "stream": True}).encode()
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if sent.count(app.KEEP_ALIVE) == 3:
            engine.job.emit(Delta(0, "word"))
            engine.job.emit(None)

    async def stream() -> None:
        came = asyncio.Queue[Message]()
        came.put_nowait({"type": "http.request", "body": body, "more_body": False})
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        await Service(engine).app()(scope, came.get, send)

    asyncio.run(asyncio.wait_for(stream(), 60))
    data = b"".join(sent)
    assert app.KEEP_ALIVE * 3 in data
    assert data.index(app.KEEP_ALIVE) < data.index(b'"word"')
    assert data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nothing"])
def test_a_length_with_chunks_is_refused_at_every_address(exact: Path, path: str) -> None:
    service = Service(Engine(named([exact]), Runner, waiting=1, idle=Idle(), max_ram=None))
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"content-length", b"4"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    asyncio.run(service.app()(scope, receive, send))
    assert sent[0]["status"] == 400
    assert (b"connection", b"close") in sent[0]["headers"]


def test_bodies_that_wait_have_a_bound_together() -> None:
    taken = Bodies(most=200)
    small, large = b'{"tokens": [1]}', b'{"tokens": [1,2,3,4,5,6,7]}'

    async def read() -> None:
        async with taken.read(request(small), DetokenizeRequest) as asked:
            assert asked.tokens == [1]
            assert taken.held == len(small) + 2 * VALUE_BYTES
            with pytest.raises(ApiError, match="are waiting already") as caught:
                async with taken.read(request(large), DetokenizeRequest):
                    pass
            assert (caught.value.status, "Retry-After" in caught.value.headers) == (429, True)
        async with taken.read(request(large), DetokenizeRequest) as asked:
            assert len(asked.tokens) == 7

    asyncio.run(read())
    assert taken.held == 0


@pytest.mark.parametrize("gap", [60, 0.1])
def test_a_body_that_does_not_come_is_not_waited_for(gap: float) -> None:
    """None of it comes any more, or a byte now and then."""
    taken = Bodies(seconds=0.3)

    async def receive() -> Message:
        came.append(1)
        assert len(came) < 100
        if len(came) > 1:
            await asyncio.sleep(gap)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def read() -> None:
        async with taken.read(Request({"type": "http", "headers": []}, receive), DetokenizeRequest):
            pass

    came = list[int]()
    with pytest.raises(ApiError, match="comes too slowly") as caught:
        asyncio.run(read())
    assert (caught.value.status, taken.held) == (408, 0)


def test_who_waits_to_be_told_to_send_too_much_is_told_at_once() -> None:
    headers = {"content-length": str(bodies.MAX_BODY_BYTES + 1), "expect": "100-continue"}

    async def read() -> None:
        async with Bodies().read(request(b"", headers), DetokenizeRequest):
            pass

    with pytest.raises(ApiError, match="larger than 64MiB"):
        asyncio.run(read())
