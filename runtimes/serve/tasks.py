"""Requests that run side by side: each on a thread of its own, of which one at a time goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.session import MAX_LAST, Asked
from edgeglm.runtimes.serve.jobs import Job

Result = NDArray[np.float32] | Exception | None


class Task:
    """A request that stops between steps of the decoder, until it is resumed.

    Nothing of it runs while the engine's thread does, nor the other way round: so neither needs a lock.

    Args:
        runner: Of this request alone.
        job: The request.

    Attributes:
        asked: The step that it waits for, where steps are shared.
        slot: The sequence of that step.
        is_aside: Whether another request uses its place in the decoder meanwhile.
        is_ready: Returns whether there is room for it, where it waits for that.
        error: What ended it, if anything.
        is_over: Whether it has ended.
    """

    def __init__(self, runner: Runner, job: Job) -> None:
        self.runner, self.job = runner, job
        self.asked: Asked | None = None
        self.slot, self.is_aside, self.is_over = 0, False, False
        self.error: Exception | None = None
        self.is_ready: Callable[[], bool] = _always
        self._result: Result = None
        self._goes_on, self._stops = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="request", daemon=True)
        self._thread.start()

    def resume(self, result: Result = None) -> None:
        """Let it go on to its next stop or to its end, with the logits that it waits for, or with an error instead."""
        self.asked, self._result = None, result
        self._goes_on.release()
        self._stops.acquire()
        if self.is_over:
            self._thread.join()

    def stop(self) -> NDArray[np.float32] | None:
        """Wait on the request's own thread until it is resumed, and return what with."""
        self._stops.release()
        self._goes_on.acquire()
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def wait(self, slot: int, asked: Asked) -> NDArray[np.float32]:
        """Return the logits of a step, on the request's own thread, as soon as it is resumed with them."""
        self.slot, self.asked = slot, asked
        logits = self.stop()
        assert logits is not None
        return logits

    def wait_for(self, is_ready: Callable[[], bool]) -> None:
        """Wait on the request's own thread until there is room for it."""
        while not is_ready():
            self.is_ready = is_ready
            self.stop()
        self.is_ready = _always

    def forget(self) -> None:
        """Drop what refers to it in turn: its decoder's memory would wait for the garbage collector."""
        self.job.pause, self.error = _always, None
        del self.runner, self.job

    def _run(self) -> None:
        self._goes_on.acquire()
        try:
            self.job.work(self.runner, self.job)
        except Exception as error:
            self.error = error
        finally:
            self.is_over = True
            self._stops.release()


def _always() -> bool:
    return True


def together(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks, of those in their order, whose steps are computed together.

    They are all that decode, and one that has a piece of a prompt or an image left: so no one waits for more than that.
    An image comes behind the step.
    """
    pieces = [task for task in tasks if not task.asked or task.asked.count > MAX_LAST]
    return sorted((task for task in tasks if task not in pieces[1:]), key=lambda task: task.asked is None)


def compute(runner: Runner, tasks: Sequence[Task]) -> dict[int, Result]:
    """Return what requests wait for, by slot; those that ask for nothing compute their steps themselves."""
    asked = {task.slot: task.asked for task in tasks if task.asked}
    if not runner.slots or not asked:
        return {}
    try:
        return {**runner.slots.step(asked)}
    except Exception as error:
        return dict.fromkeys(asked, error)
