"""High requests behind a long prompt, over HTTP: how long they wait for their first token.

``python -m benchmarks.serve_high BUNDLE`` starts ``edgeglm serve`` and has it prefill prompts of 3,000 tokens again and
again, or as many as the bundle's window holds. In the middle of each a request of priority high comes. Its time to the
first token, less that of such requests on an idle server, is what it waited: percentiles less percentiles, for a busy
machine delays both. The bound is a step and a piece: the time of a long prompt, divided by its pieces of 256 tokens,
and a token's. Other options are the server's. It prints both, and ends with exit code 1 if the 99th percentile is
beyond the bound.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.hostile import PATH
from benchmarks.serve_load import serving
from edgeglm.runtimes.core.generate import PREFILL_CHUNK

LONG_TOKENS, COUNT, SEED, TIMEOUT = 3000, 20, 1, 600
WORDS = "the quick brown fox jumps "
Address = tuple[str, int]


def first_token(address: Address, text: str, priority: str, tokens: int = 2) -> tuple[float, float, int]:
    """Return the seconds to a stream's first token and between two of them, and the tokens of its prompt."""
    message = {"role": "user", "content": text}
    fields = {"messages": [message], "temperature": 0, "max_tokens": tokens, "priority": priority, "stream": True}
    body = json.dumps({**fields, "stream_options": {"include_usage": True}})
    start, times, told = time.monotonic(), list[float](), 0
    with closing(http.client.HTTPConnection(*address, timeout=TIMEOUT)) as connection:
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            assert response.status == 200, response.read()
            for line in response:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    times += [time.monotonic()] if chunk["choices"] else []
                    told = (chunk["usage"] or {}).get("prompt_tokens", told)
    return times[0] - start, (times[-1] - times[0]) / max(1, len(times) - 1), told


def long_text(address: Address, number: int, tokens: int) -> str:
    """Return a text of about so many tokens, whose beginning no other one has."""
    few = first_token(address, WORDS * 10, "normal")[2]
    more = first_token(address, WORDS * 30, "normal")[2]
    return f"{number} {WORDS * (20 * tokens // (more - few))}"


def meet(address: Address, text: str, delay: float, number: int) -> float:
    """Return the seconds to the first token of a high request that comes in the middle of a long prompt."""
    long = threading.Thread(target=first_token, args=(address, text, "normal"))
    long.start()
    time.sleep(delay)
    seconds = first_token(address, f"Select {number}", "high")[0]
    assert long.is_alive(), "the long prompt had ended before"
    long.join()
    return seconds


def main() -> int:
    """Start a server, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=LONG_TOKENS, help=f"of a long prompt (default: {LONG_TOKENS})")
    parser.add_argument("--count", type=int, default=COUNT, help=f"high requests (default: {COUNT})")
    options, others = parser.parse_known_args()
    chance, longest, alone, met = random.Random(SEED), list[float](), list[float](), list[float]()
    with serving(options.bundle, others) as (_, address):
        body = long_text(address, 0, options.tokens).partition(" ")[2]
        for number in range(options.count):
            seconds, step, tokens = first_token(address, f"{number} {body}", "normal")
            longest.append(seconds / (tokens / PREFILL_CHUNK) + step)
            alone.append(first_token(address, f"Select {number}", "high")[0])
            met.append(meet(address, f"again {number} {body}", seconds * chance.uniform(0.1, 0.6), number))
    bound = statistics.median(longest)
    print(f"a step and a piece of a prompt of {tokens} tokens: {bound:.3f} s")
    (usual, late), (usual_alone, late_alone) = percentiles(met), percentiles(alone)
    print(f"a high request alone: first token after p50 {usual_alone:.3f} s, p99 {late_alone:.3f} s")
    print(f"{len(met)} high requests behind one: p50 {usual:.3f} s, p99 {late:.3f} s")
    print(f"so they waited p50 {usual - usual_alone:.3f} s, p99 {late - late_alone:.3f} s")
    return int(late - late_alone > bound)


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    return statistics.median(seconds), sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]


if __name__ == "__main__":
    sys.exit(main())
