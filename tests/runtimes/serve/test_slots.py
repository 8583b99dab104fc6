"""Requests that are answered side by side: each as alone, none behind the whole of another."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.serve.tasks import Task, together
from tests.bundles import reseal
from tests.runtimes.serve.conftest import question, serving

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
    """A stream of so many random tokens, which is left in the end."""
    body = json.dumps({"prompt": "a b c", "max_tokens": tokens, "temperature": 1.5, "seed": 3, "stream": True})
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


def task_of(count: int) -> Task[str]:
    """A task that waits for a step of so many tokens."""
    made: list[Task[str]] = []
    step = Asked(np.zeros((1, count, 1), np.float32), np.zeros((1, 1, count), np.int64), 1)
    made.append(Task(lambda: seen.append(made[0].wait(0, step)), "job"))
    made[0].resume()
    return made[0]


seen: list[Any] = []


def test_a_step_has_all_that_decode_and_one_piece_of_a_prompt() -> None:
    tasks = [task_of(count) for count in (1, 256, 200, 5)]
    assert [task.asked.count for task in together(tasks) if task.asked] == [1, 256, 5]
    for task in tasks:
        task.resume(np.zeros(1, np.float32))
        assert task.is_over


def test_a_task_goes_on_with_what_it_is_given() -> None:
    task = task_of(1)
    task.resume(np.full(1, 7, np.float32))
    assert (task.is_over, task.error, float(seen[-1][0])) == (True, None, 7.0)


def test_a_task_ends_with_the_error_that_it_is_given() -> None:
    task = task_of(1)
    task.resume(ValueError("no"))
    assert task.is_over
    assert str(task.error) == "no"
