"""Runs tasks side by side as long as the memory that they are predicted to take fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from edgeglm.export.cluster import Task

T = TypeVar("T")
R = TypeVar("R")


def run_within(
    tasks: Sequence[Task[T]], budget: int, workers: int, work: Callable[[T], R], stop: Callable[[], object]
) -> Generator[tuple[T, R], None, None]:
    """Yield each item with its result as it is finished, in the order of the tasks where memory allows.

    Args:
        tasks: Items with the bytes that each takes; a single one may not take more than the budget.
        budget: Bytes of the tasks that are at work together, at no time more.
        workers: How many are at work together at most.
        work: Computes an item's result.
        stop: Has the tasks end; called before they are waited for, where the iteration is left early, by an error or an
            interrupt.
    """
    waiting, running = list(tasks), dict[Future[R], Task[T]]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                while len(running) < workers and (task := _fitting(waiting, running, budget)):
                    waiting.remove(task)
                    running[pool.submit(work, task.item)] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future).item, future.result()
        except BaseException:
            stop()
            raise


def _fitting(waiting: Sequence[Task[T]], running: dict[Future[R], Task[T]], budget: int) -> Task[T] | None:
    """Return the first task that there is memory for now."""
    free = budget - sum(task.bytes for task in running.values())
    return next((task for task in waiting if task.bytes <= free), None)
