"""Processor time of a token, in the engine and around it: ``python -m benchmarks.step BUNDLE…``, on one thread.

The thread's own time, so that other programs matter less; of several answers the one with the least of each. Drafts and
grammar are off: each token takes a pass.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import onnxruntime

from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampler, Sampling
from edgeglm.runtimes.text.messages import message

ANSWERS = 5


class Engine:
    """The engine, whose time is taken."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._run = onnxruntime.InferenceSession.run_with_iobinding
        onnxruntime.InferenceSession.run_with_iobinding = self.timed()

    def timed(self) -> object:
        """Return what takes its place."""

        def run(session: object, *arguments: object) -> None:
            start = time.thread_time()
            self._run(session, *arguments)
            self.seconds += time.thread_time() - start

        return run


def main() -> int:
    """Measure each bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--words", type=int, default=200, help="of the prompt")
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    options, engine = parser.parse_args(), Engine()
    for bundle in options.bundles:
        inside, around = measure(bundle, engine, options.words, options.tokens)
        share = around / (inside + around)
        print(f"{bundle.name:<20} engine {1e3 * inside:.2f} ms a token, around it {1e6 * around:.0f} us: {share:.1%}")
    return 0


def measure(bundle: Path, engine: Engine, words: int, count: int) -> tuple[float, float]:
    """Return the seconds of a token in the engine and around it."""
    times = []
    with Runner(bundle, 1) as runner:
        runner.drafts = None
        prompt = runner.prompt([message("user", "x " * words)])
        for _ in range(ANSWERS):
            tokens = runner.complete(prompt, Sampler(Sampling()), count, ())
            next(tokens)  # behind the prompt
            engine.seconds, start = 0.0, time.thread_time()
            later = sum(1 for _ in tokens)
            whole = time.thread_time() - start
            times.append((engine.seconds / later, (whole - engine.seconds) / later))
    return min(inside for inside, _ in times), min(around for _, around in times)


if __name__ == "__main__":
    sys.exit(main())
