"""The engine's thread: requests wait in a queue, and one after the other is answered by its bundle's runner."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeglm.bundle import Bundle, load_bundle
from edgeglm.errors import DamagedFileError
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.answers import Event
from edgeglm.runtimes.serve.errors import ApiError, to_api

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
    """A runner in memory, and when it was asked last."""

    runner: Runner
    used: float


class Engine:
    """Answers requests one at a time on a thread of its own; a bundle is loaded when it is asked, and released later.

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
        self.queue: queue.Queue[Job | None] = queue.Queue(waiting)
        self.windows: dict[str, int] = {}  # tokens of prompt and answer, by bundle
        self.running = 0
        self._loaded: dict[str, _Loaded] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return self.queue.qsize()

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
            self.windows[name] = self._take(name).window.tokens
        self._thread.start()

    def submit(self, bundle: str, work: Callable[[Runner, Job], None]) -> Job:
        """Queue a request; must be called on the server's event loop.

        Raises:
            ApiError: Too many wait already.
        """
        job = Job(bundle, work, asyncio.get_running_loop())
        try:
            self.queue.put_nowait(job)
        except queue.Full:
            why = f"{self.queue.maxsize} requests are waiting already; try again"
            raise ApiError(429, why, code="queue_full", headers={"Retry-After": str(RETRY_SECONDS)}) from None
        return job

    def stop(self) -> None:
        """Release everything once the running request has ended."""
        if self._thread.is_alive():
            self.queue.put(None)
            self._thread.join()
        self._release(self.loaded)

    def _run(self) -> None:
        while True:
            try:
                job = self.queue.get(timeout=TICK_SECONDS)
            except queue.Empty:
                self._release_idle()
                continue
            if job is None:
                return
            if not job.cancelled:
                self._do(job)

    def _do(self, job: Job) -> None:
        self.running = 1
        try:
            job.work(self._take(job.bundle), job)
        except Cancelled:
            pass
        except Exception as error:
            if isinstance(error, DamagedFileError):  # the next request opens the bundle anew
                self._release([job.bundle] if job.bundle in self._loaded else [])
            job.emit(to_api(error))
        else:
            job.emit(None)
        finally:
            self.running = 0

    def _take(self, name: str) -> Runner:
        """Return the runner of a bundle, which is loaded if need be, others released for it."""
        if name not in self._loaded:
            self._make_room(name)
            self._loaded[name] = _Loaded(self.open_runner(self.folders[name]), 0.0)
        self._loaded[name].used = time.monotonic()
        return self._loaded[name].runner

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
