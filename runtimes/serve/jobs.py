"""Requests on their way through the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
    loop: asyncio.AbstractEventLoop
    claim: Claim
    session: str | None = None
    events: asyncio.Queue[Event | ApiError | None] = field(default_factory=asyncio.Queue)
    pause: Callable[[], object] = lambda: None
    cancelled: bool = False

    def emit(self, event: Event | ApiError | None) -> None:
        """Hand an event over to the server's event loop."""
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

    def between_steps(self) -> None:
        """Let others go first. Raises as `check`."""
        self.check()
        self.pause()
        self.check()
