"""Requests that run side by side: each on a thread of its own, of which one at a time goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeglm.runtimes.core.session import MAX_LAST, Asked

Result = NDArray[np.float32] | Exception | None
J = TypeVar("J")


class Task(Generic[J]):
    """A request that stops wherever it needs a step of the decoder, until it is resumed with what the step gave.

    Nothing of it runs while the engine's thread does, nor the other way round: so neither needs a lock.

    Args:
        work: What the request does.
        job: The request.

    Attributes:
        asked: The step that it waits for.
        slot: The sequence of that step.
        error: What ended it, if anything.
        is_over: Whether it has ended.
    """

    def __init__(self, work: Callable[[], None], job: J) -> None:
        self.work, self.job = work, job
        self.asked: Asked | None = None
        self.slot, self.is_over = 0, False
        self.error: Exception | None = None
        self._result: Result = None
        self._goes_on, self._stops = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="request", daemon=True)
        self._thread.start()

    def resume(self, result: Result = None) -> None:
        """Let it go on to its next step or to its end, with the logits that it waits for, or with an error instead."""
        self.asked, self._result = None, result
        self._goes_on.release()
        self._stops.acquire()
        if self.is_over:
            self._thread.join()

    def wait(self, slot: int, asked: Asked) -> NDArray[np.float32]:
        """Return the logits of a step, on the request's own thread, as soon as it is resumed with them."""
        self.slot, self.asked = slot, asked
        self._stops.release()
        self._goes_on.acquire()
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result

    def _run(self) -> None:
        self._goes_on.acquire()
        try:
            self.work()
        except Exception as error:
            self.error = error
        finally:
            self.is_over = True
            self._stops.release()


def together(tasks: Sequence[Task[J]]) -> list[Task[J]]:
    """Return the tasks, the longest running one first, whose steps are computed together.

    They are all that decode, and one that has a piece of a prompt left: so no one waits for more than a piece.
    """
    pieces = [task for task in tasks if task.asked and task.asked.count > MAX_LAST]
    return [task for task in tasks if task.asked and task not in pieces[1:]]
