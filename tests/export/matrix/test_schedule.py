"""Tasks run side by side as far as memory allows, and end when they are to."""

from __future__ import annotations

import threading
import time

import pytest

from edgeglm.export.cluster import Task
from edgeglm.export.matrix.schedule import run_within


class Load:
    """Work that notes how much of it was going on at once."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes, self.lock = sizes, threading.Lock()
        self.now: set[str] = set()
        self.most_bytes = self.most = 0
        self.stopped = threading.Event()

    def __call__(self, name: str) -> str:
        with self.lock:
            self.now.add(name)
            self.most = max(self.most, len(self.now))
            self.most_bytes = max(self.most_bytes, sum(self.sizes[each] for each in self.now))
        self.stopped.wait(0.05)
        with self.lock:
            self.now.discard(name)
        return name.upper()


def tasks(load: Load) -> list[Task[str]]:
    return [Task(name, size) for name, size in load.sizes.items()]


@pytest.mark.parametrize(("workers", "budget", "most"), [(4, 100, 4), (2, 100, 2), (4, 10, 1), (4, 16, 2)])
def test_no_more_is_at_work_than_workers_and_memory(workers: int, budget: int, most: int) -> None:
    load = Load({"a": 8, "b": 8, "c": 8, "d": 8, "e": 8})
    results = dict(run_within(tasks(load), budget, workers, load, load.stopped.set))
    assert results == {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"}
    assert load.most == most
    assert load.most_bytes <= budget
    assert not load.stopped.is_set()


def test_a_small_task_need_not_wait_for_a_large_one() -> None:
    load = Load({"first": 8, "large": 10, "small": 2})
    assert [item for item, _ in run_within(tasks(load), 10, 2, load, load.stopped.set)][-1] == "large"


def test_who_leaves_early_has_what_runs_stopped_and_the_rest_never_begun() -> None:
    load = Load(dict.fromkeys("abcdefgh", 1))
    begun: list[str] = []

    def work(name: str) -> str:
        begun.append(name)
        if name != "a":
            load.stopped.wait(60)
        return name

    start = time.monotonic()
    results = run_within(tasks(load), 2, 2, work, load.stopped.set)
    assert next(results)[0] == "a"
    results.close()
    assert load.stopped.is_set()
    assert time.monotonic() - start < 30
    assert begun in (["a", "b"], ["b", "a"])


def test_an_error_in_a_task_comes_out_and_stops_the_others() -> None:
    stopped = threading.Event()

    def fail(name: str) -> str:
        raise ValueError(name)

    with pytest.raises(ValueError, match="a"):
        list(run_within([Task("a", 1)], 1, 1, fail, stopped.set))
    assert stopped.is_set()
