"""Many requests to one runner: how resident memory and latency drift.

``python benchmarks/long_use.py BUNDLE`` asks a bundle 1,000 times: 50 of the demo's held-out screens with their
questions, every fifth without its picture, again and again. It prints memory and latency after 50, 250, 500 and 1,000
requests, and how far the last is from the first. Latency is the median over one round of the 50.
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
from edgeglm.runtimes.chat import message
from edgeglm.runtimes.runner import Runner
from edgeglm.units import format_size

DATA = Path(__file__).parents[1] / "export" / "demo" / "data"
ROUND = 50
MARKS = (50, 250, 500, 1000)
BLIND = 5  # every fifth question comes without its picture
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Mark:
    """Where a run stands after some requests."""

    requests: int
    rss_bytes: int
    peak_bytes: int
    median_ms: float


def measure(bundle: Path, threads: int | None) -> list[Mark]:
    """Ask as often as the last mark says."""
    found: list[Mark] = []
    milliseconds: list[float] = []
    with Runner(bundle, threads) as runner:
        for prompt, picture in islice(cycle(_questions()), MARKS[-1]):
            start = time.perf_counter()
            runner.answer([message("user", prompt, picture)], max_new_tokens=MAX_NEW_TOKENS)
            milliseconds.append((time.perf_counter() - start) * 1e3)
            if len(milliseconds) in MARKS:
                median = statistics.median(milliseconds[-ROUND:])
                found.append(Mark(len(milliseconds), current_rss(), peak_rss(), median))
    return found


def _questions() -> Iterator[tuple[str, Path | None]]:
    """One round of prompts and their pictures."""
    with (DATA / "evaluation.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(islice(file, ROUND)):
            picture, text = json.loads(line)["messages"][0]["content"]
            yield text["text"], None if number % BLIND == 0 else DATA / picture["image_url"]["url"]


def _table(marks: list[Mark]) -> Iterator[str]:
    yield f"{'REQUEST':<9}{'RSS':<12}{'PEAK RSS':<12}LATENCY"
    for mark in marks:
        sizes = f"{format_size(mark.rss_bytes):<12}{format_size(mark.peak_bytes):<12}"
        yield f"{mark.requests:<9}{sizes}{mark.median_ms:.1f} ms"
    first, last = marks[0], marks[-1]
    memory, peak = last.rss_bytes / first.rss_bytes - 1, last.peak_bytes / first.peak_bytes - 1
    yield f"{'drift':<9}{memory:<+12.2%}{peak:<+12.2%}{last.median_ms / first.median_ms - 1:+.2%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, help="of the engine (default: all cores)")
    options = parser.parse_args()
    print("\n".join(_table(measure(options.bundle, options.threads))))


if __name__ == "__main__":
    main()
