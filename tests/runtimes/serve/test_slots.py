"""Requests that are answered side by side: each as alone, none behind the whole of another."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("llguidance")

from PIL import Image

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.runtimes.core.prompt import Picture
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.serve.answers import Started
from edgeglm.runtimes.serve.completions import chat_work
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.jobs import Job
from edgeglm.runtimes.serve.schema import ChatRequest
from tests.bundles import reseal
from tests.runtimes.serve.conftest import question, serving
from tests.runtimes.serve.engines import chat, events_of, running, submit

QUESTIONS = [question("Select OK", 1), question("Select OK", 2), question("What is this?"), question("Go back", 4)]


@pytest.fixture(scope="module")
def slotted(exact: Path) -> Iterator[str]:
    with serving(exact, "--slots", "3", "--grammar", "off") as (_, url):
        yield url


def post(url: str, fields: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(fields).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


@contextmanager
def streaming(url: str, tokens: int) -> Iterator[http.client.HTTPResponse]:
    """A stream of so many random tokens, which is left in the end; no token of this seed ends it before."""
    body = json.dumps({"prompt": "a b c", "max_tokens": tokens, "temperature": 2.0, "seed": 1, "stream": True})
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            yield response


def ask(url: str, messages: list[dict[str, Any]]) -> tuple[str, list[float]]:
    answer = post(url, {"messages": messages, "max_tokens": 40, "temperature": 0, "logprobs": True})
    choice = answer["choices"][0]
    return choice["message"]["content"], [token["logprob"] for token in choice["logprobs"]["content"]]


def test_each_gets_the_answer_that_it_gets_alone(slotted: str, exact: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        side_by_side = [*pool.map(lambda index: ask(slotted, QUESTIONS[index % 4]), range(12))]
    with serving(exact, "--grammar", "off") as (_, url):
        alone = [ask(url, messages) for messages in QUESTIONS]
    for index, (text, scores) in enumerate(side_by_side):
        assert text == alone[index % 4][0]
        np.testing.assert_allclose(scores, alone[index % 4][1], atol=1e-4)


def test_an_answer_does_not_wait_for_the_end_of_a_longer_one(slotted: str) -> None:
    ended, begun = list[str](), threading.Event()

    def stream() -> None:
        with streaming(slotted, 600) as response:
            response.readline()
            begun.set()
            response.read()
        ended.append("long")

    thread = threading.Thread(target=stream)
    thread.start()
    assert begun.wait(60)
    post(slotted, {"messages": QUESTIONS[2], "max_tokens": 2})
    ended.append("short")
    thread.join()
    assert ended == ["short", "long"]


def screens(count: int, size: int = 1500) -> list[dict[str, Any]]:
    """A question behind images that nobody has seen before."""
    parts: list[dict[str, Any]] = []
    for _ in range(count):
        file = io.BytesIO()
        Image.effect_noise((size, size), 99).save(file, "PNG", compress_level=1)
        data = base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Select OK"}]}]


def test_others_go_on_between_the_images_of_a_prompt(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"type": "object", "properties": {"a": {"type": "string", "minLength": 4000}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": long}}
    steps, read_at = list[object](), list[int]()

    async def both(engine: Engine) -> None:
        writer = submit(engine, chat("x", max_tokens=3000, response_format=form))
        assert isinstance(await writer.events.get(), Started)
        await events_of(submit(engine, ChatRequest(messages=screens(4), temperature=0, max_tokens=2)))
        writer.cancelled = True

    with running(exact, slots=2) as engine:
        runner = engine.bundles.loaded[exact.name].runner
        assert runner.slots
        step, read = runner.slots.step, runner.pictures._read

        def count_step(asked: Mapping[int, Asked]) -> Mapping[int, NDArray[np.float32]]:
            steps.append(asked)
            return step(asked)

        def note_read(picture: Picture, count: int) -> NDArray[np.float32]:
            read_at.append(len(steps))
            return read(picture, count)

        monkeypatch.setattr(runner.slots, "step", count_step)
        monkeypatch.setattr(runner.pictures, "_read", note_read)
        asyncio.run(both(engine))
    assert len(read_at) == len(set(read_at)) == 4  # each behind a further step of the other one


@pytest.mark.parametrize("slots", [1, 2])
def test_whoever_goes_away_stops_the_encoding_of_images(exact: Path, slots: int) -> None:
    """Behind the second of four images, wherever the request has its turns."""
    asked = ChatRequest(messages=screens(4, 300), temperature=0, max_tokens=2)
    encoded = list[object]()

    def leave(runner: Runner, job: Job) -> None:
        features = runner.pictures.between

        def between() -> None:
            encoded[:] = [phase for phase in runner._costs.phases if phase.name == "encode image"]
            job.cancelled = len(encoded) == 2
            features()

        runner.pictures.between = between
        chat_work(asked)(runner, job)

    async def ask(engine: Engine) -> None:
        submit(engine, asked, leave)
        await events_of(submit(engine, chat("Select OK")))

    with running(exact, slots=slots) as engine:
        asyncio.run(ask(engine))
    assert len(encoded) == 2


def test_whoever_goes_away_frees_a_slot(slotted: str) -> None:
    for _ in range(5):
        with streaming(slotted, 900) as response:
            response.readline()
    deadline = time.monotonic() + 30
    while "edgeglm_requests_running 0.0" not in _metrics(slotted):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _metrics(url: str) -> str:
    with urllib.request.urlopen(url.replace("/v1", "/metrics"), timeout=30) as response:
        text: str = response.read().decode()
    return text


def test_what_cannot_be_served_side_by_side_says_so(exact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give at most 4"):
        Runner(exact, slots=5)
    earlier = shutil.copytree(exact, tmp_path / "earlier")
    reseal(earlier, lambda manifest: [module.pop("slots", None) for module in manifest["modules"]])
    with pytest.raises(UnsupportedError, match="computes one sequence at a time"):
        Runner(earlier, slots=2)
