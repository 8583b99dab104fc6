"""Requests of high priority in the middle of others: who waits for how long, and that no answer changes by it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.runtimes.serve.answers import Event
from edgeglm.runtimes.serve.completions import chat_work
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.jobs import Job
from edgeglm.runtimes.serve.schedule import AGE_SECONDS
from tests.runtimes.serve.engines import LONG, chat, check_same, events_of, held, running, submit

FIRST, SECOND = chat(LONG), chat("Select OK", 1, priority="high")
OTHER = chat("a b c", temperature=1.5, seed=3, max_tokens=200)


async def meet(engine: Engine, step: int, others: int) -> tuple[list[list[Event]], list[str]]:
    """Let a request of high priority come when a long one is at a step, behind which `others` have the other places."""
    goes_on, reached, ended = threading.Event(), threading.Event(), list[str]()

    async def ask(name: str, job: Job) -> list[Event]:
        events = await events_of(job)
        ended.append(name)
        return events

    asked = [asyncio.create_task(ask("other", submit(engine, OTHER))) for _ in range(others)]
    job = submit(engine, FIRST, held(chat_work(FIRST), goes_on, reached, step))
    asked.append(asyncio.create_task(ask("long", job)))
    await asyncio.to_thread(reached.wait, 60)
    asked.append(asyncio.create_task(ask("high", submit(engine, SECOND))))
    await asyncio.sleep(0)
    goes_on.set()
    return [await one for one in asked], ended


@pytest.mark.parametrize(("step", "slots"), [(2, 1), (4, 1), (2, 2)])
def test_a_displaced_request_goes_on_token_for_token(exact: Path, step: int, slots: int) -> None:
    async def alone(engine: Engine) -> list[list[Event]]:
        return [await events_of(submit(engine, asked)) for asked in (FIRST, SECOND)]

    with running(exact, slots=slots) as engine:
        undisturbed = asyncio.run(alone(engine))
        engine.bundles.loaded[exact.name].runner.forget()
        (*_, first, second), ended = asyncio.run(meet(engine, step, slots - 1))
        page = engine.metrics.page().decode()
    assert ended.index("high") < ended.index("long")
    assert "edgeglm_displaced_total 1.0" in page
    assert "edgeglm_requests_aside 0.0" in page
    check_same(first, undisturbed[0])
    check_same(second, undisturbed[1])


def test_a_displaced_request_that_nobody_waits_for_leaves_the_other_one_alone(exact: Path) -> None:
    async def meet_and_leave(engine: Engine) -> list[Event]:
        reached, goes_on, begun = threading.Event(), threading.Event(), threading.Event()
        long = submit(engine, FIRST, held(chat_work(FIRST), goes_on, reached, 2))
        await asyncio.to_thread(reached.wait, 60)
        high = submit(engine, SECOND, held(chat_work(SECOND), begun, threading.Event(), 2))
        goes_on.set()
        long.cancelled = True
        begun.set()
        events = await events_of(high)
        return events

    with running(exact) as engine:
        alone = asyncio.run(_only(engine))
        engine.bundles.loaded[exact.name].runner.forget()
        check_same(asyncio.run(meet_and_leave(engine)), alone)
        assert "edgeglm_displaced_total 1.0" in engine.metrics.page().decode()


async def _only(engine: Engine) -> list[Event]:
    return await events_of(submit(engine, SECOND))


def test_a_bundle_that_waits_for_memory_is_not_overtaken_for_ever(exact: Path, tmp_path: Path) -> None:
    """Requests for the bundle in memory wait behind one that is older by enough."""
    other, time = Path(shutil.copytree(exact, tmp_path / "other")), [0.0]

    async def ask(engine: Engine) -> list[str]:
        reached, goes_on, ended = threading.Event(), threading.Event(), list[str]()

        async def take(name: str, job: Job) -> None:
            await events_of(job)
            ended.append(name)

        short = chat("Select OK")
        running = take("first", submit(engine, short, held(chat_work(short), goes_on, reached, 1), "other"))
        jobs = [asyncio.create_task(running)]
        await asyncio.to_thread(reached.wait, 60)
        jobs.append(asyncio.create_task(take("waits", submit(engine, short, bundle=exact.name))))
        time[0] += 2 * AGE_SECONDS
        jobs += [asyncio.create_task(take("later", submit(engine, short, bundle="other"))) for _ in range(2)]
        await asyncio.sleep(0)
        goes_on.set()
        await asyncio.gather(*jobs)
        return ended

    with running(exact, other, max_ram=200 << 20, now=lambda: time[0]) as engine:
        assert asyncio.run(ask(engine)) == ["first", "waits", "later", "later"]
