"""Cost of a token on the server beside a runner, in processor time: ``python -m benchmarks.serve_cost BUNDLE``.

A server and a runner in this process answer in turns, with few and with many tokens behind a prompt that both know. The
difference of the two is the cost of the tokens, and the rest is that of a request. The bundle stays loaded: what a
server that was left alone releases, and loads again, is no cost of HTTP.

``--before TREE`` adds the server of another checkout of edgeglm.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.serve import HELD, OVERHEAD, WORDS, Server, prompt, serving
from edgeglm.runtimes.core.prompt import text_prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampler, Sampling

FEW, MANY = 8, 72


class Spent(NamedTuple):
    """Processor seconds of an answer, and of the thread that speaks HTTP."""

    process: float
    http: float


def main() -> int:
    """Measure in turns, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--before", type=Path, metavar="TREE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    trees = {"edgeglm": Path.cwd(), **({"before": options.before} if options.before else {})}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(started(tree, options)) for name, tree in trees.items()}
        runner = stack.enter_context(Runner(options.bundle, options.threads))
        ways: dict[str, Callable[[int, int], Spent]] = {name: partial(served, one) for name, one in servers.items()}
        ways["alone"] = partial(alone, runner)
        print("\n".join(told(measured(ways, options.turns))))
    return 0


@contextmanager
def started(tree: Path, options: argparse.Namespace) -> Iterator[Server]:
    """Start the server of a checkout, and give it."""
    command = [sys.executable, "-m", "edgeglm", "serve", str(options.bundle.resolve()), "--port", "{port}"]
    command += ["--threads", str(options.threads), "--idle", HELD]
    with ExitStack() as stack:
        with chdir(tree):
            server = stack.enter_context(serving(command))
        yield server


def measured(ways: Mapping[str, Callable[[int, int], Spent]], turns: int) -> dict[str, tuple[Spent, Spent]]:
    """Return the medians of each way's answers of few and of many tokens; the first turn only warms up."""
    few, many = ({name: list[Spent]() for name in ways} for _ in range(2))
    for turn in range(turns + 1):
        for name, way in ways.items():
            few[name].append(way(FEW, 2 * turn))
            many[name].append(way(MANY, 2 * turn + 1))
    return {name: (_median(few[name]), _median(many[name])) for name in ways}


def _median(runs: list[Spent]) -> Spent:
    return Spent(*(statistics.median(values) for values in zip(*runs[1:], strict=True)))


def served(server: Server, tokens: int, seed: int) -> Spent:
    """Return what an answer costs a server."""
    before, http = server.cpu(), server.http_cpu()
    server.stream(WORDS, tokens, 0, seed)
    return Spent(server.cpu() - before, server.http_cpu() - http)


def alone(runner: Runner, tokens: int, seed: int) -> Spent:
    """Return what the same answer costs a runner."""
    before = time.process_time()
    asked = text_prompt(runner.chat, runner.model, prompt(WORDS, 0))
    sampling = replace(Sampling.of(runner.bundle.manifest.generation), temperature=1.0)
    runner.answer(asked, max_new_tokens=tokens, sampling=Sampler(sampling, seed), grammar="off")
    return Spent(time.process_time() - before, 0.0)


def told(costs: Mapping[str, tuple[Spent, Spent]]) -> Iterator[str]:
    """Yield a line for each way, and what the server adds to the runner."""
    tokens = {}
    for name, (few, many) in costs.items():
        token, http = ((many[part] - few[part]) / (MANY - FEW) for part in (0, 1))
        request, tokens[name] = few.process - FEW * token, token
        of_it = f", of it HTTP's thread {1e3 * http:.2f} ms" if http else ""
        yield f"{name:<8} a request {1e3 * request:>6.1f} ms, a token {1e3 * token:.2f} ms{of_it}"
    added = tokens["edgeglm"] / tokens["alone"] - 1
    yield f"the server adds {added:+.1%} to a token (bar: {OVERHEAD:.0%})  {'met' if added <= OVERHEAD else 'MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
