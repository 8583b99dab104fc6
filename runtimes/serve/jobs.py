"""Requests on their way through the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.answers import Event
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.serve.schedule import Claim


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Job:
    """A request: its work on a thread of its own, and the events that come of it.

    The last event is None, or what went wrong.

    Attributes:
        claim: Its place among the others.
        session: The user's session that it is of, if its client says so.
        pause: Lets others go first between two steps.
        cancelled: Whether nobody waits for it.
    """

    bundle: str
    work: Callable[[Runner, Job], None]
    outbox: Outbox
    claim: Claim
    session: str | None = None
    events: asyncio.Queue[Event | ApiError | None] = field(default_factory=asyncio.Queue)
    pause: Callable[[], object] = lambda: None
    cancelled: bool = False

    def emit(self, event: Event | ApiError | None) -> None:
        """Hand an event over to the server's event loop."""
        self.outbox.put(self, event)

    def check(self) -> None:
        """Raise where nobody waits any more.

        Raises:
            Cancelled: The client has gone.
        """
        if self.cancelled:
            raise Cancelled

    def between_steps(self) -> None:
        """Let others go first. Raises as `check`."""
        self.check()
        self.pause()
        self.check()


class Outbox:
    """Events on their way to an event loop, which is woken once for all that come together.

    Args:
        loop: Of the server; None until there is one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop, self._events = loop, deque[tuple[Job, Event | ApiError | None]]()
        self._holds = self._is_woken = False

    def put(self, job: Job, event: Event | ApiError | None) -> None:
        """Hand over an event of a request, from any thread."""
        self._events.append((job, event))
        if not self._holds:
            self._wake()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hand over at the end what is put meanwhile: tokens of a step, which many streams wait for."""
        self._holds = True
        try:
            yield
        finally:
            self.hand_over()

    def hand_over(self) -> None:
        """Hand over what has been held, and hold no more: what follows is of no step of several."""
        self._holds = False
        if self._events:
            self._wake()

    def _wake(self) -> None:
        if self._is_woken:
            return
        assert self.loop
        self._is_woken = True  # before the loop may look
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop has closed: the server has ended
            self._is_woken = False
            while self._events:
                self._events.popleft()[0].cancelled = True

    def _deliver(self) -> None:
        self._is_woken = False  # what comes from here on may come too late for this time
        while self._events:
            job, event = self._events.popleft()
            job.events.put_nowait(event)
