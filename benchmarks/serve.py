"""Servers on the same shape, in turns: time to the first token, tokens a second, mixed load, and the cost of HTTP.

``python -m benchmarks.serve BUNDLE --rival 'COMMAND'`` starts ``edgeglm serve`` without slots and with four, and each
rival's command, in which ``{port}`` stands for a port and ``{threads}`` for the threads. A rival speaks OpenAI's
``/v1/completions`` with streams, such as llama.cpp's ``llama-server -m F.gguf --port {port} -np 4``, or ``python -m
llama_cpp.server --model F.gguf --port {port} --interrupt_requests False``, which answers one request at a time. All are
asked in turns, so that a noisy machine hurts them alike; figures are medians over the turns.

Without BUNDLE it is the 300M GLM-4 shape in INT4, made in the folder ``--work``: with random weights, and words that
are whole characters, so that each token comes as an event. The cost of HTTP is told twice: by what a server's process
and a runner without HTTP spend on the same tokens in turns, and by the time of the one thread that speaks HTTP.
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.random_tokenizer import SPECIAL, write_tokenizer
from edgeglm.process import child
from edgeglm.runtimes.core.prompt import text_prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampler, Sampling

Figures = dict[str, float]
SHAPE, VOCABULARY = "glm4-300m", 32000
STREAMS, TOKENS, WORDS = (1, 2, 4), 48, 40
# Of a token's processor time in one turn: answers, and tokens of each.
PAIRS, PAIR_TOKENS, FEW = 4, 64, 8
# Of the mixed load: requests, clients at once, words of a prompt and tokens of an answer from and to.
MIXED, CLIENTS, MIXED_WORDS, MIXED_TOKENS = 24, 4, (4, 200), (4, 48)
START_SECONDS, TIMEOUT = 300, 600
# The cost of HTTP may be so much of a token's.
OVERHEAD = 0.02
PATH = "/v1/completions"
# The seconds for which edgeglm holds what nobody asks for while others have their turn: they release nothing.
HELD = "3600"
# clock_getcpuclockid(3): the clock of another process.
CPU_OF_PROCESS = 2


class Stream(NamedTuple):
    """When a stream was asked for and when its pieces came, by the clock, and its tokens."""

    begun: float
    times: tuple[float, ...]
    tokens: int

    @property
    def first(self) -> float:
        """When the first piece came."""
        return self.times[0]

    @property
    def last(self) -> float:
        """When the last piece came."""
        return self.times[-1]


class Server(NamedTuple):
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int

    def stream(self, words: int, tokens: int, seed: int, drawn: int | None = None) -> Stream:
        """Ask for a stream of tokens behind random words of a seed, drawn by the same or another seed."""
        begun = time.monotonic()
        fields = {"model": "x", "prompt": prompt(words, seed), "max_tokens": tokens, "temperature": 1.0}
        fields |= {"seed": seed if drawn is None else drawn, "stream": True}
        body = json.dumps({**fields, "stream_options": {"include_usage": True}})
        times, told = list[float](), 0
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)) as connection:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                if response.status != 200:
                    raise RuntimeError(f"{response.status}: {response.read(500)!r}")
                for line in response:
                    if line.startswith(b"data: {"):
                        chunk = json.loads(line[6:])
                        times += [time.monotonic() for choice in chunk["choices"] if choice["text"]]
                        told = (chunk.get("usage") or {}).get("completion_tokens", told)
        if len(times) < 2:
            raise RuntimeError("the text came as a whole: take a bundle whose tokens are whole characters")
        return Stream(begun, tuple(times), told or len(times))

    def cpu(self) -> float:
        """Return the processor seconds of its process so far."""
        return time.clock_gettime(~self.process.pid << 3 | CPU_OF_PROCESS)

    def http_cpu(self) -> float:
        """Return the processor seconds of its first thread so far: of edgeglm's server, the one that speaks HTTP."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


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
        figures["together"] = together(done)
        figures[f"first {count}"] = statistics.median(stream.first - stream.begun for stream in done)
    return {**figures, **mixed(server, turn)}


def together(streams: Sequence[Stream]) -> float:
    """Return the tokens a second while all streams are answered: 0 if they are answered one after the other.

    Servers take prompts in different order: one begins to answer when all are read, another when the first is. What the
    prompts cost is in the rate of the whole, in the time to the first token and in the mixed load.
    """
    begun, ended = max(stream.first for stream in streams), min(stream.last for stream in streams)
    if ended <= begun:
        return 0.0
    return sum(sum(begun < time <= ended for time in stream.times) for stream in streams) / (ended - begun)


def mixed(server: Server, turn: int) -> Figures:
    """Return median and 99th percentile of the seconds of requests of many sizes."""
    chance = random.Random(turn)
    seeds = range(9000 + turn * MIXED, 9000 + (turn + 1) * MIXED)
    sizes = [(chance.randint(*MIXED_WORDS), chance.randint(*MIXED_TOKENS), seed) for seed in seeds]
    with ThreadPoolExecutor(CLIENTS) as pool:
        done = list(pool.map(lambda size: server.stream(*size), sizes))
    seconds = sorted(stream.last - stream.begun for stream in done)
    return {"p50": statistics.median(seconds), "p99": seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]}


def costs(servers: Mapping[str, Server], runner: Runner, turn: int) -> Iterator[dict[str, Figures]]:
    """Yield processor seconds of a token, of each server and of a runner here (``alone``), for the same tokens.

    No answer comes again, or it would be drafted; the prompt does, and is known from an answer that is not measured.
    """
    for server in servers.values():
        server.stream(WORDS, FEW, 0, turn)
    runner_cpu(runner, turn)
    for drawn in range(500 + turn * PAIRS, 500 + (turn + 1) * PAIRS):
        pair = {name: served_cpu(server, drawn) for name, server in servers.items()}
        yield {**pair, "alone": {"token cpu": runner_cpu(runner, drawn)}}


def served_cpu(server: Server, drawn: int) -> Figures:
    """Return what a token costs a server's process, and its thread for HTTP."""
    before, http_before = server.cpu(), server.http_cpu()
    tokens = server.stream(WORDS, PAIR_TOKENS, 0, drawn).tokens
    return {"token cpu": (server.cpu() - before) / tokens, "http cpu": (server.http_cpu() - http_before) / tokens}


def runner_cpu(runner: Runner, drawn: int) -> float:
    """Return what a token costs a runner in this process, without HTTP."""
    before = time.process_time()
    asked = text_prompt(runner.chat, runner.model, prompt(WORDS, 0))
    sampling = replace(Sampling.of(runner.bundle.manifest.generation), temperature=1.0)
    done = runner.answer(asked, max_new_tokens=PAIR_TOKENS, sampling=Sampler(sampling, drawn), grammar="off")
    return (time.process_time() - before) / done.generated_tokens


def medians(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the turns."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def table(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Yield a row a server."""
    yield f"{'':<20}FIRST TOKEN   TOKENS/S: 1       2       4  DECODING 4   MIXED: P50     P99   CPU A TOKEN"
    for name, row in figures.items():
        rates = "".join(f"{row[f'streams {count}']:>8.1f}" for count in STREAMS)
        mixed_load = f"{row['p50']:>9.2f} s{row['p99']:>6.2f} s"
        yield (
            f"{name:<20}{row['first 1']:>9.3f} s    {rates}{row['together']:>12.1f}  {mixed_load}"
            f"{1e3 * row['token cpu']:>9.2f} ms"
        )


def made(work: Path) -> Path:
    """Return the bundle of the shape in a folder, and make it if it is not there."""
    checkpoint, bundle = work / SHAPE, work / "int4"
    work.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        subprocess.run(
            [sys.executable, Path(__file__).with_name("random_checkpoint.py"), SHAPE, checkpoint], check=True
        )
        write_tokenizer(checkpoint, VOCABULARY - len(SPECIAL), is_ascii=True)
    if not bundle.exists():
        command = ["-m", "edgeglm", "export", str(checkpoint), "--target", "cpu", "--precision", "int4"]
        subprocess.run([sys.executable, *command, "-o", bundle], check=True)
    return bundle


def main() -> int:
    """Run the servers in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument(
        "--work", type=Path, default=Path("serve-work"), help="where the shape is made without a bundle"
    )
    parser.add_argument("--rival", action="append", default=[], metavar="COMMAND", help="of a server, with {port}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    bundle = options.bundle or made(options.work)
    own = [sys.executable, "-m", "edgeglm", "serve", str(bundle), "--port", "{port}", "--threads", "{threads}"]
    own += ["--idle", HELD]
    commands = {"edgeglm": own, "edgeglm --slots 4": [*own, "--slots", "4"]}
    commands |= {f"rival {number}": shlex.split(command) for number, command in enumerate(options.rival, start=1)}
    threads = str(options.threads)
    commands = {name: [word.replace("{threads}", threads) for word in words] for name, words in commands.items()}
    runs: dict[str, list[Figures]] = {name: [] for name in commands}
    pairs: list[dict[str, Figures]] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(command)) for name, command in commands.items()}
        runner = stack.enter_context(Runner(bundle, options.threads))
        for turn in range(options.turns):
            for name, server in servers.items():
                runs[name].append(measure(server, turn))
            pairs += costs(servers, runner, turn)
            print(f"turn {turn + 1}: load {os.getloadavg()[0]:.1f}", flush=True)
    figures = {name: medians(runs[name]) | medians([pair[name] for pair in pairs]) for name in commands}
    print("\n".join(["", *table(figures), ""]))
    for name, row in figures.items():
        whole, decoding = row["streams 4"] / row["streams 1"], row["together"] / row["streams 1"]
        together = f"{decoding:.2f}x while all are decoded" if decoding else "one after the other"
        print(f"{name}: 4 streams beside 1: {whole:.2f}x with their prompts, {together}")
    print("\n".join(told_costs(pairs)))
    return 0


def told_costs(pairs: Sequence[Mapping[str, Figures]]) -> Iterator[str]:
    """Yield what HTTP costs: as the median of the pairs' ratios, and by its thread."""
    token = statistics.median(pair["alone"]["token cpu"] for pair in pairs)
    http = statistics.median(pair["edgeglm"]["http cpu"] for pair in pairs)
    cost = statistics.median(pair["edgeglm"]["token cpu"] / pair["alone"]["token cpu"] - 1 for pair in pairs)
    yield f"a token of the runner alone: {1e3 * token:.2f} ms of processor"
    yield f"the server's process beside it, {len(pairs)} answers in turns: {cost:+.1%} (bar: {OVERHEAD:.0%})"
    yield f"its thread for HTTP: {1e3 * http:.2f} ms, {http / token:.1%}"


if __name__ == "__main__":
    sys.exit(main())
