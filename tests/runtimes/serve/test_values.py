"""Values of a body are counted before they are made: how exactly, and that many of them are refused in time."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from starlette.requests import Request

from edgeglm.runtimes.serve.bodies import MAX_VALUES, Bodies
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.schema import ChatRequest
from edgeglm.runtimes.serve.values import FEW, count_values
from tests.runtimes.serve.conftest import question

MOST = 100_000


@pytest.mark.parametrize(
    "text", ["a, [b], {c} " * FEW, '"Say, \\"yes\\"," {[' * FEW, "\\\\, " * FEW, '\\",\\\\"' * FEW]
)
def test_what_stands_in_a_text_is_no_value(text: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    assert count_values(body, MOST) < 20


@pytest.mark.parametrize("value", [{}, [], 1, "", "a,b", {"a": 1, "b": [2]}])
def test_there_are_no_more_values_than_counted(value: object) -> None:
    for count in (1, 100, 2 * FEW):
        counted = count_values(json.dumps({"values": [value] * count}).encode(), MOST)
        assert count <= counted <= 12 * count + 12


@pytest.mark.parametrize("value", [b"{}", b"1", b'""', b'{"a":1}', b'"\\"",[]'])
def test_a_body_of_many_values_is_refused_before_they_are_made(value: bytes) -> None:
    body = b'{"messages":[' + (value + b",") * (4 * MAX_VALUES) + b"{}]}"

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> None:
        async with bodies.read(Request({"type": "http", "headers": []}, receive), ChatRequest):
            pass

    bodies, before = Bodies(), time.process_time()
    with pytest.raises(ApiError, match="has more than 262144 values") as caught:
        asyncio.run(read())
    assert (caught.value.status, bodies.held) == (413, 0)
    assert time.process_time() - before < 2


def test_values_count_among_the_bytes_of_bodies() -> None:
    body = json.dumps({"messages": question("OK") * 1000}).encode()
    bodies = Bodies(most=10 * len(body))

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> None:
        async with bodies.read(Request({"type": "http", "headers": []}, receive), ChatRequest):
            assert bodies.held > 2 * len(body)

    asyncio.run(read())
    assert bodies.held == 0
