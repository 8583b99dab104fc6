"""Requests that stop between steps: which steps go together, and how a request goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.serve.answers import Beat, Started
from edgeglm.runtimes.serve.jobs import Cancelled, Job, Outbox
from edgeglm.runtimes.serve.schedule import Claim
from edgeglm.runtimes.serve.tasks import Task, together


def job(outbox: Outbox, work: Callable[[Runner, Job], None] = lambda runner, job: None) -> Job:
    return Job("bundle", work, outbox, Claim("text", "normal", 0.0))


class Loop:
    """An event loop that counts how often it is woken."""

    def __init__(self) -> None:
        self.loop, self.woken = asyncio.get_running_loop(), 0

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        self.woken += 1
        self.loop.call_soon_threadsafe(call)


class Waiting:
    """A task that waits for a step of so many tokens, and what it is given."""

    def __init__(self, count: int) -> None:
        self.seen: list[Any] = []
        self.step = Asked(np.zeros((1, count, 1), np.float32), np.zeros((1, 1, count), np.int64), 1)
        self.job = job(Outbox(None), self._work)  # no event is emitted
        self.task = Task(cast(Runner, None), self.job)
        self.task.resume()

    def _work(self, runner: Runner, job: Job) -> None:
        self.seen.append(self.task.wait(0, self.step))


def test_a_step_has_all_that_decode_and_the_first_piece_of_a_prompt() -> None:
    tasks = [Waiting(count).task for count in (1, 256, 200, 5)]
    assert [task.asked.count for task in together(tasks) if task.asked] == [1, 256, 5]
    assert [task.asked.count for task in together(tasks[::-1]) if task.asked] == [5, 200, 1]
    for task in tasks:
        task.resume(np.zeros(1, np.float32))
        assert task.is_over


def test_an_image_goes_with_a_step_as_a_piece_of_a_prompt_does() -> None:
    decoding, image, piece = (Waiting(count).task for count in (1, 1, 256))
    asked, image.asked = image.asked, None  # it computes something of its own
    assert together([image, decoding, piece]) == [decoding, image]
    assert together([piece, image, decoding]) == [piece, decoding]
    image.asked = asked
    for task in (decoding, image, piece):
        task.resume(np.zeros(1, np.float32))


def test_a_task_goes_on_with_what_it_is_given() -> None:
    waiting = Waiting(1)
    waiting.task.resume(np.full(1, 7, np.float32))
    assert (waiting.task.is_over, waiting.task.error, float(waiting.seen[0][0])) == (True, None, 7.0)


def test_a_task_ends_with_the_error_that_it_is_given() -> None:
    waiting = Waiting(1)
    waiting.task.resume(ValueError("no"))
    assert waiting.task.is_over
    assert str(waiting.task.error) == "no"


def test_a_job_that_nobody_waits_for_ends_between_steps() -> None:
    job = Waiting(1).job
    job.pause = lambda: setattr(job, "cancelled", True)
    with pytest.raises(Cancelled):
        job.between_steps()


def test_what_comes_together_wakes_the_loop_once_and_stays_in_order() -> None:
    async def deliver() -> None:
        loop = Loop()
        outbox = Outbox(cast(asyncio.AbstractEventLoop, loop))
        first, second = job(outbox), job(outbox)

        def step() -> None:
            with outbox.together():
                for each, count in ((first, 1), (second, 2), (first, 3)):
                    each.emit(Started(count))
                assert not loop.woken

        await asyncio.to_thread(step)
        got = [await each.events.get() for each in (first, first, second)]
        assert got == [Started(1), Started(3), Started(2)]
        assert loop.woken == 1
        await asyncio.to_thread(second.emit, Beat())  # alone, it comes at once
        assert (await second.events.get(), loop.woken) == (Beat(), 2)

    asyncio.run(asyncio.wait_for(deliver(), 30))


def test_who_goes_on_alone_within_a_shared_step_is_heard_at_once() -> None:
    async def deliver() -> None:
        loop = Loop()
        outbox = Outbox(cast(asyncio.AbstractEventLoop, loop))
        left = job(outbox)

        def step() -> None:
            with outbox.together():
                left.emit(Started(1))
                outbox.hand_over()
                left.emit(Started(2))
                assert loop.woken

        await asyncio.to_thread(step)
        assert [await left.events.get(), await left.events.get()] == [Started(1), Started(2)]

    asyncio.run(asyncio.wait_for(deliver(), 30))


def test_a_loop_that_has_closed_leaves_its_requests_to_nobody() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    (left := job(Outbox(loop))).emit(Beat())
    assert left.cancelled
