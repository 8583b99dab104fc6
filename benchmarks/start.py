"""Processor time of a first answer: ``python -m benchmarks.start BUNDLE… --prefix FILE --images FIRST SECOND``.

Of each bundle's ``run.pyz``, in turns: the first answer of all, which leaves the state behind the prefix in the store;
the first answer of a later process, about another picture; and that answer in a process that has answered before. Give
two bundles of the same model to compare what exported them.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeglm.runtimes.core.drafts import Drafts
from edgeglm.runtimes.core.keep_options import read_keep
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.text.messages import message

# What the first answer after a restart may take of a later one.
BAR = 1.25
Figures = dict[str, float]


def main() -> int:
    """Measure, and print a row a bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--prefix", type=Path, required=True, help="the system prompt")
    parser.add_argument("--images", type=Path, nargs=2, required=True, metavar=("FIRST", "SECOND"))
    parser.add_argument("--prompt", default="Select OK")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    runs: dict[Path, list[Figures]] = {bundle: [] for bundle in options.bundles}
    for _ in range(options.turns):
        for bundle in options.bundles:
            runs[bundle].append(turn(bundle, options))
    print("\n".join(table({bundle: medians(of_bundle) for bundle, of_bundle in runs.items()})))
    return 0


def turn(bundle: Path, options: argparse.Namespace) -> Figures:
    """Return the processor seconds of each answer, with a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = (process(bundle, image, folder, options) for image in options.images)
        return {"first": first, "restart": second, "warm": warm(bundle, options)}


def process(bundle: Path, image: Path, store: str, options: argparse.Namespace) -> float:
    """Return the processor seconds of an answer in a process of its own, from its start to its end."""
    asked = ["--prefix", options.prefix, "--image", image, "--prompt", options.prompt, "--threads", "1", "--json"]
    command = [sys.executable, bundle / "run.pyz", *asked, "--max-new-tokens", str(options.tokens)]
    environment = {**os.environ, "XDG_CACHE_HOME": store}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = children()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env=environment)
    return children() - before


def warm(bundle: Path, options: argparse.Namespace) -> float:
    """Return the processor seconds of an answer behind another one; what is kept, is kept in memory.

    It drafts from its own prompt alone, as a new process does: else random weights, which repeat themselves, would
    take two thirds of the passes, and the figures would not be of the same work.
    """
    with Runner(bundle, 1, keep=read_keep(options.prefix, "0")) as runner:
        for image in options.images:
            runner.drafts = Drafts()
            before = time.process_time()
            asked = message("user", options.prompt, image)
            runner.answer([*runner.prefixes.messages, asked], max_new_tokens=options.tokens)
    return time.process_time() - before


def children() -> float:
    """Return the processor seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def medians(runs: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(figures: Mapping[Path, Figures]) -> Iterator[str]:
    """Yield a row a bundle."""
    yield f"{'':<24}FIRST OF ALL  AFTER A RESTART      LATER  RATIO"
    for bundle, row in figures.items():
        first, restart, later = (1e3 * row[name] for name in ("first", "restart", "warm"))
        met = "met" if restart <= BAR * later else "MISSED"
        yield f"{bundle.name:<24}{first:>9.0f} ms{restart:>14.0f} ms{later:>8.0f} ms  {restart / later:>5.2f}  {met}"


if __name__ == "__main__":
    sys.exit(main())
