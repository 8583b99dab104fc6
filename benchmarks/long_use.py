"""Many requests to one runner: how resident memory and latency drift.

``python benchmarks/long_use.py BUNDLE`` asks a bundle 1,000 times, or ``--requests``: 50 of the demo's held-out screens
with their questions, every fifth without its picture, again and again. It prints memory and latency (the median of 50
requests) after 50 of them, a tenth, a quarter, a half, and all. Then the old runner and a new one, which has answered
the 50 once, answer them in turn, question by question, so that what else the machine does is in both latencies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from edgeglm.memory import current_rss, peak_rss
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.text.messages import message
from edgeglm.units import format_size

DATA = Path(__file__).parents[1] / "export" / "demo" / "data"
ROUND = 50
COMPARED = 4  # rounds in which the old runner and the new one take turns
REQUESTS = 1000
BLIND = 5  # every fifth question comes without its picture
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Mark:
    """Where a run stands after some requests."""

    requests: int
    rss_bytes: int
    peak_bytes: int
    latency_ms: float


def age(runner: Runner, requests: int) -> Iterator[Mark]:
    """Ask so often; a mark stands behind the first round, a tenth, a quarter, a half, and the end."""
    marks = {ROUND, requests // 10, requests // 4, requests // 2, requests}
    latencies: list[float] = []
    for question in islice(cycle(_questions()), requests):
        latencies.append(_ask(runner, question))
        if len(latencies) in marks:
            yield Mark(len(latencies), current_rss(), peak_rss(), statistics.median(latencies[-ROUND:]))


def compare(old: Runner, new: Runner) -> tuple[float, float]:
    """Medians of the latency of both, in milliseconds, question by question in turn."""
    for question in _questions():
        _ask(new, question)
    pairs = [(_ask(old, question), _ask(new, question)) for _ in range(COMPARED) for question in _questions()]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def _ask(runner: Runner, question: tuple[str, Path | None]) -> float:
    start = time.perf_counter()
    runner.answer([message("user", *question)], max_new_tokens=MAX_NEW_TOKENS)
    return (time.perf_counter() - start) * 1e3


def _questions() -> Iterator[tuple[str, Path | None]]:
    """One round of prompts and their pictures."""
    with (DATA / "evaluation.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(islice(file, ROUND)):
            picture, text = json.loads(line)["messages"][0]["content"]
            yield text["text"], None if number % BLIND == 0 else DATA / picture["image_url"]["url"]


def _table(marks: Iterator[Mark]) -> Iterator[str]:
    yield f"{'REQUEST':<9}{'RSS':<12}{'PEAK RSS':<12}LATENCY"
    found: list[Mark] = []
    for mark in marks:
        found.append(mark)
        sizes = f"{format_size(mark.rss_bytes):<12}{format_size(mark.peak_bytes):<12}"
        yield f"{mark.requests:<9}{sizes}{mark.latency_ms:.1f} ms"
    first, last = found[0], found[-1]
    yield f"{'drift':<9}{last.rss_bytes / first.rss_bytes - 1:<+12.2%}{last.peak_bytes / first.peak_bytes - 1:+.2%}"


def main() -> None:
    """Print the table, and the latencies side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, help="of the engine (default: all cores)")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="to the old runner (default: %(default)s)")
    options = parser.parse_args()
    with Runner(options.bundle, options.threads) as old:
        for line in _table(age(old, options.requests)):
            print(line, flush=True)
        with Runner(options.bundle, options.threads) as new:
            after, before = compare(old, new)
    between = f"after {options.requests} requests {after:.1f} ms, after {ROUND} {before:.1f} ms"
    print(f"in turn  {between}: {after / before - 1:+.2%}")


if __name__ == "__main__":
    main()
