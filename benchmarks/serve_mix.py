"""A mixed load on the server's engine: latencies by kind and priority, beside the same load first come, first served.

``python -m benchmarks.serve_mix BUNDLE`` asks an engine in this process, without HTTP: short questions about
screenshots, short texts, and a text of 3,000 tokens now and then, which come at random times and keep it busy for a
given part of the time. The same arrivals meet three engines: first come, first served; shares of the kinds alone; and
priorities too, where images are high and the long texts low. It prints mean latencies and how long requests waited for
their begin, and ends with exit code 1 unless the mean latency of images with priorities is at most 0.6 of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeglm.runtimes.core.generate import PREFILL_CHUNK
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.completions import chat_work, kind_of
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.program import named
from edgeglm.runtimes.serve.release import Idle
from edgeglm.runtimes.serve.schedule import Claim, Priority
from edgeglm.runtimes.serve.schema import ChatRequest, decode

SCREENS = Path(__file__).parents[1] / "export" / "demo" / "data" / "evaluation"
WORDS, LONG_TOKENS, ANSWER = "the quick brown fox jumps ", 3000, 24
LOAD, REQUESTS, SEED, BAR = 0.8, 60, 1, 0.6
BEHIND = 20
# Of ten requests.
MIX = ("image",) * 5 + ("text",) * 4 + ("long",)
PRIORITIES: dict[str, Priority] = {"image": "high", "text": "normal", "long": "low"}


@dataclass(frozen=True)
class Ended:
    """A request: its name in the mix, and the seconds until it began and until its answer was whole."""

    name: str
    wait: float
    latency: float


def request(name: str, number: int, words: int) -> ChatRequest:
    """Return the request of this number, with so many words if it is long."""
    content: list[dict[str, object]] = [{"type": "text", "text": f"Select OK {number}"}]
    if name == "image":
        data = base64.b64encode((SCREENS / f"{number % 16:04d}.webp").read_bytes()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{data}"}})
    if name == "long":
        content = [{"type": "text", "text": f"{number} {WORDS * words}"}]
    fields = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": ANSWER}
    return decode(json.dumps(fields).encode(), ChatRequest)


class Mix:
    """A mixed load for an engine.

    Args:
        folder: Of the bundle.
        slots: Requests at once.
        count: How many requests.
    """

    def __init__(self, folder: Path, slots: int, count: int) -> None:
        self.folder, self.slots = folder, slots
        with Runner(folder) as runner:
            prompt = runner.prompt([{"role": "user", "content": WORDS * 10}])
            window = min(LONG_TOKENS, runner.window.tokens - 2 * ANSWER)
            self.words = 10 * window // len(prompt.tokens)
        names = random.Random(SEED)
        self.asked = [
            (name, request(name, number, self.words)) for number, name in enumerate(names.choices(MIX, k=count))
        ]

    def open(self) -> Engine:
        """Return a fresh engine, which runs."""

        def open_runner(folder: Path) -> Runner:
            runner = Runner(folder, slots=self.slots)
            runner.grammars.default, runner.drafts = "off", None
            return runner

        count = len(self.asked)
        engine = Engine(named([self.folder]), open_runner, waiting=count, idle=Idle(600, 600, 600), max_ram=None)
        engine.start()
        return engine

    def seconds(self) -> float:
        """Return what a request takes alone, in the mean."""
        engine = self.open()

        async def one_by_one() -> None:
            for name, asked in self.asked[: len(MIX) * 2]:
                await answer(engine, name, asked, "normal")

        start = time.monotonic()
        asyncio.run(one_by_one())
        seconds = (time.monotonic() - start) / len(self.asked[: len(MIX) * 2])
        engine.stop()
        return seconds

    def run(self, gap: float, priorities: dict[str, Priority], change: Callable[[Engine], None]) -> list[Ended]:
        """Send the requests at random times, `gap` seconds apart in the mean, and return how they ended.

        Args:
            gap: Seconds.
            priorities: By names of the mix; normal where there is none.
            change: Changes the engine before.
        """
        engine, times = self.open(), random.Random(SEED)
        change(engine)

        async def load() -> list[Ended]:
            tasks = []
            for name, asked in self.asked:
                priority = priorities.get(name, "normal")
                tasks.append(asyncio.create_task(answer(engine, name, asked, priority)))
                await asyncio.sleep(times.expovariate(1 / gap))
            return [await task for task in tasks]

        ended = asyncio.run(load())
        engine.stop()
        return ended

    def behind(self, count: int) -> tuple[list[float], float]:
        """Return how long high requests wait that come in the middle of a long prompt, and what its pieces take."""
        engine, times = self.open(), random.Random(SEED)
        long = request("long", 0, self.words)

        async def meet() -> tuple[list[float], float]:
            start = time.monotonic()
            await answer(engine, "long", long, "normal")
            seconds, waits = time.monotonic() - start, list[float]()
            for _ in range(count):
                engine.bundles.loaded[self.folder.resolve().name].runner.forget()
                task = asyncio.create_task(answer(engine, "long", long, "normal"))
                await asyncio.sleep(seconds * times.uniform(0.1, 0.8))
                waits.append((await answer(engine, "text", request("text", 0, 0), "high")).wait)
                await task
            return waits, seconds / (LONG_TOKENS / PREFILL_CHUNK)

        waits, piece = asyncio.run(meet())
        engine.stop()
        return waits, piece


async def answer(engine: Engine, name: str, asked: ChatRequest, priority: Priority) -> Ended:
    """Ask an engine, and return how it went."""
    start, begun, work = time.monotonic(), list[float](), chat_work(asked)

    def noted(runner: Runner, job: object) -> None:
        begun.append(time.monotonic())
        work(runner, job)  # type: ignore[arg-type]

    job = engine.submit(next(iter(engine.bundles.folders)), noted, kind_of(asked.messages), priority)
    while (event := await job.events.get()) is not None:
        if isinstance(event, ApiError):
            raise event
    return Ended(name, begun[0] - start, time.monotonic() - start)


def in_order_of_arrival(engine: Engine) -> None:
    """Make an engine serve whoever came first."""

    def order(claim: Claim, now: float) -> tuple[int, float, int]:
        return 0, 0.0, claim.number

    engine.schedule.order = order  # type: ignore[method-assign]


def mean(ended: Sequence[Ended], name: str) -> float:
    """Return the mean latency of requests in seconds."""
    return statistics.mean(one.latency for one in ended if one.name == name)


def report(title: str, ended: Sequence[Ended], first: Sequence[Ended]) -> None:
    """Print latencies, their ratios to those of the first engine, and waits."""
    print(title)
    for name in PRIORITIES:
        waits = [one.wait for one in ended if one.name == name]
        latency, ratio = mean(ended, name), mean(ended, name) / mean(first, name)
        print(f"  {name:<6} mean {latency:7.3f} s, ratio {ratio:5.2f}; {waited(waits)}")


def waited(waits: Sequence[float]) -> str:
    """Return how long requests waited, in words."""
    late = sorted(waits)[min(len(waits) - 1, int(0.99 * len(waits)))]
    return f"waited p50 {statistics.median(waits):.3f} s, p99 {late:.3f} s"


def main() -> int:
    """Load three engines, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--slots", type=int, default=1, help="requests at once (default: 1)")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"how many (default: {REQUESTS})")
    parser.add_argument("--load", type=float, default=LOAD, help=f"part of the time that is busy (default: {LOAD})")
    options = parser.parse_args()
    mix = Mix(options.bundle, options.slots, options.requests)
    seconds = mix.seconds()
    gap = seconds / options.load
    print(f"a request takes {seconds:.3f} s alone; one comes every {gap:.3f} s")
    first = mix.run(gap, {}, in_order_of_arrival)
    report("first come, first served", first, first)
    report("shares of kinds", mix.run(gap, {}, lambda engine: None), first)
    ended = mix.run(gap, PRIORITIES, lambda engine: None)
    report("priorities", ended, first)
    waits, piece = mix.behind(BEHIND)
    print(f"{len(waits)} high requests behind a long prompt, whose pieces take {piece:.3f} s: {waited(waits)}")
    ratio = mean(ended, "image") / mean(first, "image")
    print(f"images with priorities: {ratio:.2f} of the mean latency, at most {BAR}{'' if ratio <= BAR else ': MISSED'}")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
