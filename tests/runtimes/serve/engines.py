"""An engine in the test's own process, and requests to it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.answers import Delta, Event
from edgeglm.runtimes.serve.completions import Work, chat_work, kind_of
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.jobs import Job
from edgeglm.runtimes.serve.program import named
from edgeglm.runtimes.serve.release import Idle
from edgeglm.runtimes.serve.schema import ChatRequest, decode
from tests.runtimes.serve.conftest import question

# A prompt of three pieces.
LONG = "the quick brown fox jumps " * 55


@contextmanager
def running(*bundles: Path, slots: int = 1, max_ram: int | None = None, **options: Any) -> Iterator[Engine]:
    """An engine of bundles whose answers are held to no grammar."""

    def open_runner(folder: Path) -> Runner:
        runner = Runner(folder, 1, slots=slots, max_ram=max_ram)
        runner.grammars.default = "off"
        return runner

    options = {"waiting": 16, "idle": Idle(60, 60, 60), **options}
    engine = Engine(named(bundles), open_runner, max_ram=max_ram, **options)
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()


def chat(text: str, screen: int | None = None, **fields: object) -> ChatRequest:
    """A request for a chat completion, greedy."""
    body = {"messages": question(text, screen), "temperature": 0, "max_tokens": 8, "logprobs": True, **fields}
    return decode(json.dumps(body).encode(), ChatRequest)


def submit(engine: Engine, asked: ChatRequest, work: Work | None = None, bundle: str | None = None) -> Job:
    """Queue a request as the server does."""
    name = bundle or next(iter(engine.bundles.folders))
    return engine.submit(name, work or chat_work(asked), kind_of(asked.messages), asked.priority or "normal")


async def events_of(job: Job) -> list[Event]:
    """All events of a request; an error is raised."""
    events = list[Event]()
    while (event := await asyncio.wait_for(job.events.get(), 120)) is not None:
        if isinstance(event, ApiError):
            raise event
        events.append(event)
    return events


def check_same(events: list[Event], others: list[Event]) -> None:
    """Both have the same tokens, equally likely."""
    scores, expected = (
        [one for event in each if isinstance(event, Delta) for one in event.scores] for each in (events, others)
    )
    assert [score.token for score in scores] == [score.token for score in expected]
    np.testing.assert_allclose([one.logprob for one in scores], [one.logprob for one in expected], atol=1e-5)


def held(work: Work, held_until: threading.Event, reached: threading.Event, steps: int) -> Work:
    """Work that says so when it has reached a step, and waits there."""

    def wait(runner: Runner, job: Job) -> None:
        left, pause = [steps], job.pause

        def stop() -> None:
            left[0] -= 1
            if left[0] == 0:
                reached.set()
                assert held_until.wait(60)
            pause()

        job.pause = stop
        work(runner, job)

    return wait
