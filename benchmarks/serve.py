"""Servers on the same shape, in turns: time to the first token, tokens a second, mixed load, and the cost of HTTP.

``python -m benchmarks.serve BUNDLE --rival 'COMMAND'`` starts ``edgeglm serve`` without slots and with four, and each
rival's command, in which ``{port}`` stands for a port and ``{threads}`` for the threads. A rival speaks OpenAI's
``/v1/completions`` with streams, such as llama.cpp's ``llama-server -m F.gguf --port {port} -np 4`` or
``python -m llama_cpp.server --model F.gguf --port {port}``, whose requests wait for each other. All are asked in
turns, so that a noisy machine hurts them alike; figures are medians over the turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edgeglm.process import child
from edgeglm.runtimes.core.prompt import text_prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampler, Sampling

Figures = dict[str, float]
STREAMS, TOKENS, FEW, WORDS = (1, 2, 4), 48, 8, 40
# Of the mixed load: requests, clients at once, words of a prompt and tokens of an answer from and to.
MIXED, CLIENTS, MIXED_WORDS, MIXED_TOKENS = 24, 4, (4, 200), (4, 48)
START_SECONDS, TIMEOUT = 300, 600
# The cost of HTTP may be so much of a token's.
OVERHEAD = 0.02
PATH = "/v1/completions"
# clock_getcpuclockid(3): the clock of another process.
CPU_OF_PROCESS = 2


class Stream(NamedTuple):
    """When a stream's first and last pieces came, by the clock, and its tokens."""

    begun: float
    first: float
    last: float
    tokens: int


class Server(NamedTuple):
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int

    def stream(self, words: int, tokens: int, seed: int, drawn: int = 0) -> Stream:
        """Ask for a stream of tokens that are drawn by a seed, behind random words of another seed."""
        begun = time.monotonic()
        fields = {"model": "x", "prompt": prompt(words, seed), "max_tokens": tokens, "temperature": 1.0}
        body = json.dumps({**fields, "seed": seed + drawn, "stream": True, "stream_options": {"include_usage": True}})
        times, told = list[float](), 0
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)) as connection:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                if response.status != 200:
                    raise RuntimeError(f"{response.status}: {response.read(500)!r}")
                for line in response:
                    if line.startswith(b"data: {"):
                        chunk = json.loads(line[6:])
                        times += [time.monotonic()] * bool(chunk["choices"])
                        told = (chunk.get("usage") or {}).get("completion_tokens", told)
        if len(times) < 2:
            raise RuntimeError("the text came as a whole: take a bundle whose tokens are whole characters")
        return Stream(begun, times[0], times[-1], told or len(times))

    def cpu(self) -> float:
        """Return the processor seconds of its process so far."""
        return time.clock_gettime(~self.process.pid << 3 | CPU_OF_PROCESS)


def prompt(words: int, seed: int) -> str:
    """Return so many random words."""
    chance = random.Random(seed)
    return " ".join(f"{chance.choice('abcdefgh')}{chance.randrange(10)}" for _ in range(words))


@contextmanager
def serving(command: Sequence[str]) -> Iterator[Server]:
    """Start a server, and give it as soon as it answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = int(free.getsockname()[1])
    words = [word.replace("{port}", str(port)) for word in command]
    with child(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{shlex.join(words)}: does not answer, exit code {process.poll()}")
            time.sleep(0.5)
        yield Server(process, port)


def _answers(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/v1/models")
            return connection.getresponse().status == 200
        except OSError:
            return False


def measure(server: Server, turn: int) -> Figures:
    """Return the figures of a server in one turn."""
    figures: Figures = {}
    for count in STREAMS:
        with ThreadPoolExecutor(count) as pool:
            seeds = [1000 * turn + 10 * count + index for index in range(count)]
            done = list(pool.map(partial(server.stream, WORDS, TOKENS), seeds))
        begun, last = min(stream.first for stream in done), max(stream.last for stream in done)
        figures[f"streams {count}"] = sum(stream.tokens - 1 for stream in done) / (last - begun)
        figures[f"first {count}"] = statistics.median(stream.first - stream.begun for stream in done)
    return {**figures, **mixed(server, turn), "token cpu": token_cpu(server, turn)}


def mixed(server: Server, turn: int) -> Figures:
    """Return median and 99th percentile of the seconds of requests of many sizes."""
    chance = random.Random(turn)
    seeds = range(9000 + turn * MIXED, 9000 + (turn + 1) * MIXED)
    sizes = [(chance.randint(*MIXED_WORDS), chance.randint(*MIXED_TOKENS), seed) for seed in seeds]
    with ThreadPoolExecutor(CLIENTS) as pool:
        done = list(pool.map(lambda size: server.stream(*size), sizes))
    seconds = sorted(stream.last - stream.begun for stream in done)
    return {"p50": statistics.median(seconds), "p99": seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]}


def token_cpu(server: Server, turn: int) -> float:
    """Return the processor seconds of a token, in a stream alone whose prompt is known."""

    def ask(tokens: int, drawn: int) -> int:
        return server.stream(WORDS, tokens, 500 + turn, drawn).tokens

    return _slope(ask, server.cpu)


def runner_cpu(runner: Runner, turn: int) -> float:
    """Return the same of a runner in this process, without HTTP."""
    asked = text_prompt(runner.chat, runner.model, prompt(WORDS, 500 + turn))

    def ask(tokens: int, drawn: int) -> int:
        sampler = Sampler(Sampling(temperature=1.0), 500 + turn + drawn)
        return runner.answer(asked, max_new_tokens=tokens, sampling=sampler, grammar="off").generated_tokens

    return _slope(ask, time.process_time)


def _slope(ask: Callable[[int, int], int], clock: Callable[[], float]) -> float:
    """Return what a token adds to a clock, behind the first ones of an answer."""
    ask(1, 0)
    spent = []
    for drawn, tokens in enumerate((FEW, TOKENS), start=1):  # drawn anew: an answer that comes again is drafted
        before = clock()
        made = ask(tokens, drawn)
        spent.append((clock() - before, made))
    return (spent[1][0] - spent[0][0]) / max(1, spent[1][1] - spent[0][1])


def medians(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the turns."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def table(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Yield a row a server."""
    yield f"{'':<20}FIRST TOKEN   TOKENS/S: 1       2       4   MIXED: P50     P99   CPU A TOKEN"
    for name, row in figures.items():
        rates = "".join(f"{row[f'streams {count}']:>8.1f}" for count in STREAMS)
        yield (
            f"{name:<20}{row['first 1']:>9.3f} s    {rates}  {row['p50']:>9.2f} s{row['p99']:>6.2f} s"
            f"{1e3 * row['token cpu']:>9.2f} ms"
        )


def main() -> int:
    """Run the servers in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rival", action="append", default=[], metavar="COMMAND", help="of a server, with {port}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    own = [sys.executable, "-m", "edgeglm", "serve", str(options.bundle), "--port", "{port}", "--threads", "{threads}"]
    commands = {"edgeglm": own, "edgeglm --slots 4": [*own, "--slots", "4"]}
    commands |= {f"rival {number}": shlex.split(command) for number, command in enumerate(options.rival, start=1)}
    threads = str(options.threads)
    commands = {name: [word.replace("{threads}", threads) for word in words] for name, words in commands.items()}
    runs: dict[str, list[Figures]] = {name: [] for name in commands}
    alone: list[float] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(command)) for name, command in commands.items()}
        runner = stack.enter_context(Runner(options.bundle, options.threads))
        for turn in range(options.turns):
            for name, server in servers.items():
                runs[name].append(measure(server, turn))
            alone.append(runner_cpu(runner, turn))
            print(f"turn {turn + 1}: load {os.getloadavg()[0]:.1f}", flush=True)
    figures = {name: medians(several) for name, several in runs.items()}
    print("\n".join(["", *table(figures), ""]))
    slotted, token = figures["edgeglm --slots 4"], statistics.median(alone)
    cost = figures["edgeglm"]["token cpu"] / token - 1
    print(f"4 streams beside 1: {slotted['streams 4'] / slotted['streams 1']:.2f}x")
    print(
        f"a token of the runner alone: {1e3 * token:.2f} ms of processor; HTTP adds {cost:+.1%} (bar: {OVERHEAD:.0%})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
