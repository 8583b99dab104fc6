"""The engine's thread: requests wait until their bundle has a slot, and those that run share the decoder's steps.

A bundle without slots answers one request after the other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle, load_bundle
from edgeglm.errors import DamagedFileError
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.serve.answers import Event
from edgeglm.runtimes.serve.errors import ApiError, to_api
from edgeglm.runtimes.serve.tasks import Result, Task, together

RETRY_SECONDS = 2
# How often the thread looks for bundles that nobody asks.
TICK_SECONDS = 1.0


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Job:
    """A request on its way: its work on the engine's thread, and the events that come of it.

    The last event is None, or what went wrong.
    """

    bundle: str
    work: Callable[[Runner, Job], None]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event | ApiError | None] = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def emit(self, event: Event | ApiError | None) -> None:
        """Hand an event over from the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop has closed: the server has ended
            self.cancelled = True

    def check(self) -> None:
        """Raise where nobody waits any more.

        Raises:
            Cancelled: The client has gone.
        """
        if self.cancelled:
            raise Cancelled


@dataclass
class _Loaded:
    """A runner in memory, when it was asked last, and the requests that share its steps."""

    runner: Runner
    used: float
    tasks: list[Task[Job]] = field(default_factory=list)
    is_damaged: bool = False


class Engine:
    """Answers requests on a thread of its own; a bundle is loaded when it is asked, and released later.

    Args:
        folders: Of the bundles, by the names that clients know.
        open_runner: Opens the runner of a folder.
        waiting: The most requests that wait.
        idle: Seconds after which a bundle is released that nobody asks.
        max_ram: The budget in bytes for all of them together, if there is one.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        open_runner: Callable[[Path], Runner],
        *,
        waiting: int,
        idle: float,
        max_ram: int | None,
    ) -> None:
        self.folders, self.open_runner, self.idle, self.max_ram = dict(folders), open_runner, idle, max_ram
        self.bundles: dict[str, Bundle] = {name: load_bundle(folder) for name, folder in self.folders.items()}
        self.most_waiting = waiting
        self.windows: dict[str, int] = {}  # tokens of prompt and answer, by bundle
        self.running = 0
        self._jobs: list[Job] = []
        self._changed, self._stops = threading.Condition(), False
        self._current: Task[Job] | None = None
        self._loaded: dict[str, _Loaded] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._jobs)

    @property
    def loaded(self) -> list[str]:
        """The bundles that are in memory."""
        return [*self._loaded]

    def start(self) -> None:
        """Open every bundle once, so that one which cannot be run is an error now, and start the thread.

        Raises:
            EdgeglmError: As `Runner`.
        """
        for name in self.folders:
            self.windows[name] = self._take(name).runner.window.tokens
        self._thread.start()

    def submit(self, bundle: str, work: Callable[[Runner, Job], None]) -> Job:
        """Queue a request; must be called on the server's event loop.

        Raises:
            ApiError: Too many wait already.
        """
        job = Job(bundle, work, asyncio.get_running_loop())
        with self._changed:
            if len(self._jobs) >= self.most_waiting:
                why = f"{self.most_waiting} requests are waiting already; try again"
                raise ApiError(429, why, code="queue_full", headers={"Retry-After": str(RETRY_SECONDS)})
            self._jobs.append(job)
            self._changed.notify()
        return job

    def stop(self) -> None:
        """Release everything once the running requests have ended."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._release(self.loaded)

    def _run(self) -> None:
        while True:
            while job := self._next():
                self._begin(job)
            if self.running:
                self._step()
                continue
            with self._changed:
                if not self._jobs and not self._stops:
                    self._changed.wait(TICK_SECONDS)
                if not self._jobs and self._stops:
                    return
            self._release_idle()

    def _next(self) -> Job | None:
        """Take the first of the waiting requests that may begin, and drop those for which nobody waits."""
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.cancelled]
            job = next((job for job in self._jobs if self._has_room(job.bundle)), None)
            if job:
                self._jobs.remove(job)
            return job

    def _has_room(self, name: str) -> bool:
        """Return whether a bundle has a free slot; one without slots, or not loaded, waits for all that runs."""
        loaded = self._loaded.get(name)
        if not self.running or not loaded or not loaded.runner.slots:
            return not self.running
        return len(loaded.tasks) < len(loaded.runner.slots.openers) and not loaded.is_damaged

    def _begin(self, job: Job) -> None:
        """Begin a request: up to its first step, or up to its end where its bundle has no slots."""
        self.running += 1
        try:
            loaded = self._take(job.bundle)
            if not loaded.runner.slots:
                job.work(loaded.runner, job)
        except Exception as error:
            self._end(job, error)
            return
        if not loaded.runner.slots:
            self._end(job, None)
            return
        loaded.runner.slots.compute = self._wait
        task = Task(partial(job.work, loaded.runner.beside(), job), job)
        loaded.tasks.append(task)
        self._resume(loaded, task)

    def _step(self) -> None:
        """Compute what the requests of each bundle wait for, and go on with them."""
        for loaded in [*self._loaded.values()]:
            for task in [task for task in loaded.tasks if task.job.cancelled]:
                self._resume(loaded, task, Cancelled())
            tasks, results = together(loaded.tasks), dict[int, Result]()
            if not tasks:
                continue
            assert loaded.runner.slots
            try:
                results.update(loaded.runner.slots.step({task.slot: task.asked for task in tasks if task.asked}))
            except Exception as error:
                results = dict.fromkeys((task.slot for task in tasks), error)
            for task in tasks:
                self._resume(loaded, task, results[task.slot])

    def _wait(self, slot: int, asked: Asked) -> NDArray[np.float32]:
        """Let the request that runs wait for the step that computes what it asks for."""
        assert self._current
        return self._current.wait(slot, asked)

    def _resume(self, loaded: _Loaded, task: Task[Job], result: Result = None) -> None:
        self._current = task
        task.resume(result)
        self._current, loaded.used = None, time.monotonic()
        if task.is_over:
            loaded.tasks.remove(task)
            self._end(task.job, task.error)

    def _end(self, job: Job, error: Exception | None) -> None:
        """Tell a request's client that it has ended, and how."""
        self.running -= 1
        if isinstance(error, DamagedFileError) and (loaded := self._loaded.get(job.bundle)):
            loaded.is_damaged = True  # the next request opens the bundle anew
        if not isinstance(error, Cancelled):
            job.emit(to_api(error) if error else None)

    def _take(self, name: str) -> _Loaded:
        """Return a bundle, which is loaded if need be, others released for it."""
        if name in self._loaded and self._loaded[name].is_damaged and not self._loaded[name].tasks:
            self._release([name])
        if name not in self._loaded:
            self._make_room(name)
            self._loaded[name] = _Loaded(self.open_runner(self.folders[name]), 0.0)
        self._loaded[name].used = time.monotonic()
        return self._loaded[name]

    def _make_room(self, name: str) -> None:
        """Release the bundles that were asked least recently until the predicted peaks fit the budget together."""
        if self.max_ram is None:
            return
        while self._loaded and sum(map(self._peak, (name, *self._loaded))) > self.max_ram:
            self._release([min(self._loaded, key=lambda loaded: self._loaded[loaded].used)])

    def _peak(self, name: str) -> int:
        return max(self.bundles[name].manifest.predicted.device_peak_rss_bytes.values())

    def _release_idle(self) -> None:
        now = time.monotonic()
        self._release([name for name, loaded in self._loaded.items() if now - loaded.used > self.idle])

    def _release(self, names: list[str]) -> None:
        for name in names:
            self._loaded.pop(name).runner.close()
        if names:
            trim()
