"""The engine's thread: requests are begun, displaced and brought back in their order, a step of the decoder at a time.

A bundle with slots computes a step of several requests together, one without slots a step of one request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.serve.bundles import Bundles, Loaded
from edgeglm.runtimes.serve.errors import ApiError, to_api
from edgeglm.runtimes.serve.jobs import Cancelled, Job, Outbox
from edgeglm.runtimes.serve.metrics import Metrics
from edgeglm.runtimes.serve.release import Idle, Rounds, Sessions
from edgeglm.runtimes.serve.schedule import AGE_SECONDS, WEIGHTS, Claim, Kind, Priority, Schedule
from edgeglm.runtimes.serve.tasks import Result, Task, compute, together

RETRY_SECONDS = 2
# How often the thread looks for what nobody asks.
TICK_SECONDS = 1.0


class Engine:
    """Answers requests on a thread of its own; a bundle is loaded when it is asked, and released later.

    Args:
        folders: Of the bundles, by the names that clients know.
        open_runner: Opens the runner of a folder.
        waiting: The most requests that wait.
        idle: How long things are held that nobody asks for.
        max_ram: The budget in bytes for all of them together, if there is one.
        weights: Of the kinds of requests.
        now: Returns the time in seconds.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        open_runner: Callable[[Path], Runner],
        *,
        waiting: int,
        idle: Idle,
        max_ram: int | None,
        weights: Mapping[Kind, float] = WEIGHTS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundles, self.now = Bundles(folders, open_runner, max_ram, idle, now), now
        self.sessions, self.rounds = Sessions(idle.session), Rounds(idle)
        self._ended, self._looked = set[str](), -TICK_SECONDS
        self.most_waiting, self.schedule = waiting, Schedule(weights)
        self._jobs: list[Job] = []
        self._changed, self._stops = threading.Condition(), False
        self._current: Task | None = None
        self._outbox = Outbox(None)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.metrics = Metrics(self)

    @property
    def waiting(self) -> list[Job]:
        """The requests that wait."""
        return [*self._jobs]

    @property
    def running(self) -> list[Task]:
        """The requests that have begun, also those that are set aside."""
        return self.bundles.tasks

    def start(self) -> None:
        """Open every bundle and its decoder, so that one which cannot be run is an error now, and start the thread.

        Raises:
            EdgeglmError: As `Runner`.
        """
        for name in self.bundles.folders:
            self.bundles.take(name).runner.states.open()
        self._thread.start()

    def submit(
        self,
        bundle: str,
        work: Callable[[Runner, Job], None],
        kind: Kind = "text",
        priority: Priority = "normal",
        session: str | None = None,
    ) -> Job:
        """Queue a request.

        Args:
            bundle: Its name.
            work: Of the request, with the bundle's runner.
            kind: Of the request.
            priority: Of the request.
            session: The user's session that it is of.

        Raises:
            ApiError: Too many wait already.
        """
        if self._outbox.loop is not (loop := asyncio.get_running_loop()):
            self._outbox = Outbox(loop)
        job = Job(bundle, work, self._outbox, Claim(kind, priority, self.now()), session)
        with self._changed:
            if len(self._jobs) >= self.most_waiting:
                self.metrics.refused.inc()
                why = f"as many requests as may are waiting already ({self.most_waiting}); try again"
                raise ApiError(429, why, code="queue_full", headers={"Retry-After": str(RETRY_SECONDS)})
            self.schedule.enter(job.claim)
            self._jobs.append(job)
            self.bundles.uses[bundle].asked(self.now())
            if session is not None:
                self.sessions.use(session, bundle, self.now())
            self._changed.notify()
        return job

    def end_session(self, session: str) -> bool:
        """Have what a session left behind released, once its requests have ended; return whether there is one."""
        with self._changed:
            known = session in self.sessions
            if known:
                self._ended.add(session)
                self._looked = -TICK_SECONDS
                self._changed.notify()
            return known

    def stop(self) -> None:
        """Release everything once the running requests have ended."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.bundles.release(self.bundles.loaded, "end")

    def _run(self) -> None:
        while True:
            while self._admit():
                pass
            if self.now() - self._looked >= TICK_SECONDS:
                self.release()
            if self._step():
                continue
            with self._changed:
                if not self._jobs and not self._stops:
                    self._changed.wait(TICK_SECONDS)
                if not self._jobs and self._stops:
                    return

    def _admit(self) -> bool:
        """Begin or bring back the first request that can go on, others displaced for it; False if there is none."""
        now = self.now()
        everyone: list[Job | Task] = [*self._live(), *(task for task in self.bundles.tasks if task.is_aside)]
        for waiting in sorted(everyone, key=lambda one: self._order(one, now)):
            if isinstance(waiting, Task):
                if waiting.runner.bring_back():
                    waiting.is_aside = False
                    return True
            elif self.bundles.has_room(waiting.bundle):
                loaded = self.bundles.loaded.get(waiting.bundle)
                if not loaded or len(loaded.active) < loaded.places or self._displace(loaded, waiting.claim, now):
                    self._begin(waiting)
                    return True
            elif waiting.claim.waited(now) > AGE_SECONDS and self._active():
                return False  # it waits for memory, which others would take again and again
        return False

    def _live(self) -> list[Job]:
        """Return the requests that wait, without those for which nobody waits any more."""
        with self._changed:
            gone = [job for job in self._jobs if job.cancelled]
            self._jobs = [job for job in self._jobs if not job.cancelled]
            for job in gone:
                self.schedule.leave(job.claim)
            return [*self._jobs]

    def _active(self) -> list[Task]:
        return [task for task in self.bundles.tasks if not task.is_aside and task.is_ready()]

    def _order(self, one: Job | Task, now: float) -> tuple[int, float, int]:
        return self.schedule.order((one.job if isinstance(one, Task) else one).claim, now)

    def _begin(self, job: Job) -> None:
        """Begin a request, up to its first step."""
        with self._changed:
            self._jobs.remove(job)
        start = self.now()
        self.metrics.begun(job.claim.priority, job.claim.kind, start - job.claim.since)
        try:
            loaded = self.bundles.take(job.bundle)
        except Exception as error:
            self._end(job, error)
            return
        if loaded.runner.slots:
            loaded.runner.slots.compute = self._wait
        task = Task(loaded.runner.beside(), job)
        task.runner.wait, task.runner.user, task.runner.pictures.between = task.wait_for, job.session, job.check
        if not loaded.runner.slots:
            job.pause = partial(self._pause, task)
        loaded.tasks.append(task)
        self._resume(loaded, task)
        self.schedule.serve([job.claim], start, self.now())

    def _displace(self, loaded: Loaded, claim: Claim, now: float) -> bool:
        """Set aside the last of the requests that have a place in a bundle and that the claim displaces."""
        below = [task for task in loaded.active if claim.displaces(task.job.claim, now)]
        for task in sorted(below, key=lambda task: self._order(task, now), reverse=True):
            if task.runner.set_aside():
                task.is_aside = True
                self.metrics.displaced.inc()
                return True
        return False

    def _step(self) -> bool:
        """Compute the next step of the bundle that is first in order, and go on with its requests; False if idle."""
        for loaded in [*self.bundles.loaded.values()]:
            for task in [task for task in loaded.tasks if task.job.cancelled]:
                self._resume(loaded, task, Cancelled())
        start = self.now()
        if not (active := self._active()):
            return False
        active.sort(key=lambda task: self._order(task, start))
        loaded = self.bundles.loaded[active[0].job.bundle]
        here = [task for task in active if task.job.bundle == active[0].job.bundle]
        tasks = together(here) if loaded.runner.slots else active[:1]
        claims, shared = [task.job.claim for task in tasks], [task for task in tasks if task.asked]
        results = compute(loaded.runner, tasks)
        with self._outbox.together():
            for task in shared:
                self._resume(loaded, task, results.get(task.slot))
        for task in (task for task in tasks if task not in shared):
            self._resume(loaded, task)
        self.schedule.serve(claims, start, self.now())
        return True

    def _wait(self, slot: int, asked: Asked) -> NDArray[np.float32]:
        """Let the request that runs wait for the step that computes what it asks for; alone it computes it itself."""
        assert self._current
        slots = self.bundles.loaded[self._current.job.bundle].runner.slots
        if slots and self._is_alone(self._current):
            self._outbox.hand_over()  # it goes on within the step that it shared
            return slots.step({slot: asked})[slot]
        return self._current.wait(slot, asked)

    def _pause(self, task: Task) -> None:
        if not self._is_alone(task):
            task.stop()

    def _is_alone(self, task: Task) -> bool:
        """Return, on a request's own thread, whether nothing else is to be done: two threads need not take turns."""
        return self.now() - self._looked < TICK_SECONDS and not self._jobs and self.bundles.tasks == [task]

    def _resume(self, loaded: Loaded, task: Task, result: Result = None) -> None:
        self._current = task
        task.resume(result)
        self._current, loaded.used = None, self.now()
        if task.is_over:
            loaded.tasks.remove(task)
            self._end(task.job, task.error)
            task.forget()

    def _end(self, job: Job, error: Exception | None) -> None:
        """Tell a request's client that it has ended, and how."""
        self.schedule.leave(job.claim)
        self.rounds.ended(self.now())
        if isinstance(error, DamagedFileError) and (loaded := self.bundles.loaded.get(job.bundle)):
            loaded.is_damaged = True  # the next request opens the bundle anew
        if not isinstance(error, Cancelled):
            job.emit(to_api(error) if error else None)

    def release(self) -> None:
        """Release, on the engine's thread, what nobody has asked for long enough, and what ended sessions left."""
        now = self._looked = self.now()
        with self._changed:
            running = {job.session for job in self._jobs} | {task.job.session for task in self.running}
            over = {*self._ended, *self.sessions.over(now)} - running
            left = [(session, self.sessions.end(session)) for session in over]
            self._ended -= over
            waited = {job.bundle for job in self._jobs}
        for session, names in left:
            self.bundles.released["session"] += 1
            for name in names & self.bundles.loaded.keys():
                self.bundles.loaded[name].leave(session)
        idle = [name for name in self.bundles.loaded.keys() - waited if self._is_idle(name, now)]
        self.bundles.release(idle, "idle")
        if self.rounds.is_due(now, busy=bool(waited or running)):
            self.bundles.released["round"] += 1
            self.bundles.rest()

    def _is_idle(self, name: str, now: float) -> bool:
        held = bool((loaded := self.bundles.loaded[name]).tasks) or self.sessions.hold(name)
        return not held and now - loaded.used > self.bundles.uses[name].seconds
