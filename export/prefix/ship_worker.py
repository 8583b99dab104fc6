"""The worker that computes the state behind prefixes, on a bundle that is written but not sealed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeglm.errors import BudgetError
from edgeglm.runtimes.core.keep_options import read_prefix
from edgeglm.runtimes.core.prefixes import FOLDER, Keep, place_of
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.text.messages import normalize
from edgeglm.worker import serve

NO_LIMIT = 1 << 62


class Task(msgspec.Struct, frozen=True):
    """A bundle's folder, and files of messages that prompts begin with."""

    bundle: Path
    prefixes: tuple[Path, ...]


class Shipped(msgspec.Struct, frozen=True):
    """The number of tokens of each prefix, and what computed their state."""

    tokens: tuple[int, ...]
    place: str


def compute(task: Task, show: Callable[[float], None]) -> Shipped:
    """Write the blocks of all prefixes into the bundle, which share those that they begin with alike.

    Raises:
        BudgetError: One does not fit the context, or the disk.
    """
    tokens = []
    with Runner(task.bundle, keep=Keep(NO_LIMIT, folder=task.bundle / FOLDER)) as runner:
        for index, file in enumerate(task.prefixes):
            runner.prefixes.messages = normalize(read_prefix(file))
            prompt = runner.warm()
            if prompt is None or runner.prefixes.missing(prompt):
                raise BudgetError(f"--prefix {file}", "its state has no room on the disk", "free some, and try again")
            tokens.append(prompt.kept)
            show((index + 1) / len(task.prefixes))
        return Shipped(tuple(tokens), place_of(runner.prefixes.identity))


def main() -> int:
    """Do the task on stdin."""
    return serve(Task, compute)
