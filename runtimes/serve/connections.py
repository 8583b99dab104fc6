"""The HTTP server: uvicorn's, which loses clients that are too slow to be ever done, and wakes up less often."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from contextlib import nullcontext, suppress
from functools import cache
from typing import ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

TICK_SECONDS = 1.0
# Connections that wait to be accepted: a burst of clients is not turned away.
BACKLOG = 2048
# Those that are accepted in a turn of the loop. Without a file for one, asyncio would write as many tracebacks.
ACCEPTED = 4
# Files of the process that connections leave to bundles, to images that are fetched, and to those that are closed.
SPARE_FILES = 64


@cache
def most_connections() -> int:
    """Return how many connections are open at once: each takes a file of the process."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else max(files // 2, files - SPARE_FILES)


class Connection(H11Protocol):
    """A connection that is lost by a client whose heads are not whole in time, or that does not read.

    Each takes a file of the process, of which there are not many; one beyond `most_connections` is closed at once.

    Attributes:
        seconds: From the connection, or from the first bytes of a later head, to its last, however slowly they come;
            and for which a client may leave so much unread that nothing more is written.
    """

    seconds: ClassVar[float] = 60.0
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes: of a head, or of what follows it."""
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """Wait for a client that does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: it has read."""
        super().resume_writing()
        self._unread = _stopped(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._head, self._unread = _stopped(self._head), _stopped(self._unread)

    def _watch_head(self) -> None:
        """Set the deadline of a head that is not whole; further bytes of it do not move that."""
        if self.conn.their_state is not h11.IDLE:
            self._head = _stopped(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(self.seconds, self.transport.abort)


class Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would raise them again, and a drained server would end as a killed one.

    It looks at the clock every second and not ten times, which took a tenth of what a token costs its thread.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ends = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with a longer queue than asyncio sets, which takes its length for what to accept in a turn."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    async def main_loop(self) -> None:
        """Return when the server is to end."""
        while not self.should_exit:
            await self.on_tick(0)  # the date of responses
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ends.wait(), TICK_SECONDS)

    def end(self) -> None:
        """Have the server end."""
        self.should_exit = True
        self._ends.set()

    def capture_signals(self) -> nullcontext[None]:  # type: ignore[override]
        """Capture none."""
        return nullcontext()


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer:
        timer.cancel()
    return None
