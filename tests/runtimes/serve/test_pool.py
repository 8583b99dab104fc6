"""One pool of keys and values under a budget: who is admitted, and that the process stays within it."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.bundle import load_bundle
from edgeglm.memory import peak_rss
from edgeglm.runtimes.serve.answers import Event
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.errors import ApiError
from tests.runtimes.conftest import HardLimit
from tests.runtimes.serve.conftest import question, serving
from tests.runtimes.serve.engines import LONG, chat, events_of, running, submit

WORDS = "the quick brown fox jumps "


def budget_for(bundle: Path, tokens: int) -> int:
    """Bytes in which all sequences of a bundle may have so many tokens."""
    slots = load_bundle(bundle).decoder.slots
    assert slots
    assert slots.rss_bytes
    assert slots.token_rss_bytes
    return slots.rss_bytes + slots.token_rss_bytes * tokens


def test_sequences_are_admitted_by_what_they_will_need(exact: Path) -> None:
    """Two requests of 768 tokens fit at a time, though there are four slots; one of more than all never does."""

    async def ask(engine: Engine) -> int:
        most, runner = 0, engine.bundles.loaded[exact.name].runner
        texts = [f"{index} {LONG}" for index in range(4)]
        tasks = [asyncio.create_task(events_of(submit(engine, chat(text, max_tokens=30)))) for text in texts]
        while not all(task.done() for task in tasks):
            most = max(most, sum(state.taken_by is not None for state in runner.states.states))
            assert runner.states.held <= 1600
            await asyncio.sleep(0.005)
        assert all(len(task.result()) > 1 for task in tasks)
        with pytest.raises(ApiError, match=r"the prompt has .* and prompt and answer together may have 1536") as error:
            await events_of(submit(engine, chat(WORDS * 135)))
        assert (error.value.status, error.value.code) == (400, "context_length_exceeded")
        return most

    with running(exact, slots=4, max_ram=budget_for(exact, 1600)) as engine:
        assert asyncio.run(ask(engine)) == 2
        page = engine.metrics.page().decode()
    assert "edgeglm_pool_tokens 1600.0" in page


def test_a_request_that_waits_for_room_can_be_left(exact: Path) -> None:
    async def leave(engine: Engine) -> list[Event]:
        first = submit(engine, chat(LONG, max_tokens=30))
        second = submit(engine, chat(f"2 {LONG}", max_tokens=800))
        await first.events.get()
        second.cancelled = True
        return await events_of(first)

    with running(exact, slots=2, max_ram=budget_for(exact, 1600)) as engine:
        assert asyncio.run(leave(engine))
        assert asyncio.run(leave(engine))


@pytest.mark.parametrize("slots", ["1", "4"])
def test_a_server_stays_within_its_budget(exact: Path, hard_limit: HardLimit, slots: str) -> None:
    """A control group of 1.05 times the budget would kill it."""
    least = min(load_bundle(exact).manifest.predicted.device_peak_rss_bytes.values())
    budget = least if slots == "1" else budget_for(exact, 2600)
    budget = budget * 16 // 15 + (1 << 20)  # a sixteenth is for the bodies of requests

    def ask(url: str, index: int) -> int:
        fields = {"messages": question(f"{index} {LONG}", 1 + index % 4), "max_tokens": 30}
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return int(response.status)

    arguments = [exact, "--slots", slots, "--max-ram", f"{budget >> 20}MiB", "--threads", "1", "--grammar", "off"]
    with (
        serving(*arguments, within=lambda command: hard_limit(int(1.05 * budget), command)) as (process, url),
        ThreadPoolExecutor(8) as pool,
    ):
        assert {*pool.map(lambda index: ask(url, index), range(7))} == {200}
        assert peak_rss(process.pid) <= 1.05 * budget
