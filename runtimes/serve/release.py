"""Release what a server holds: by how often it is asked, by whose it is, and in which order."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

# As many requests as this within so many seconds are often.
OFTEN, OFTEN_SECONDS = 3, 60.0
# Sessions that are remembered; the one that was used least recently ends first.
MAX_SESSIONS = 1024
# Characters of an id that are remembered as they are.
MAX_NAME = 128


@dataclass(frozen=True)
class Idle:
    """Seconds after its last request for which something is held.

    Args:
        often: A bundle that is asked often.
        rare: A bundle that is asked rarely.
        session: A user's session, with the bundle that it asks; and a bundle that was not asked yet.
        round_requests: Requests between two rounds of cleaning up.
        round_seconds: Seconds between them, if there was any request.
        round_quiet: Seconds without a request, after which one is made as well.
    """

    often: float = 30.0
    rare: float = 5.0
    session: float = 300.0
    round_requests: float = 1000
    round_seconds: float = 60.0
    round_quiet: float = 5.0


def session_key(name: str) -> str:
    """Return what stands for a session's id, however long that is."""
    return name if len(name) <= MAX_NAME else hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


class Hooks:
    """Functions that undo things: last in, first out, each once; an error in one keeps no other from being called."""

    def __init__(self) -> None:
        self._hooks = list[Callable[[], object]]()

    def add(self, hook: Callable[[], object]) -> None:
        """Have something undone before all that was added earlier."""
        self._hooks.append(hook)

    def run(self) -> int:
        """Undo everything, and return how many hooks failed; stderr has their tracebacks."""
        failed = 0
        while self._hooks:
            try:
                self._hooks.pop()()
            except Exception as error:
                failed += 1
                traceback.print_exception(error, file=sys.stderr)
        return failed


class Uses:
    """Requests of a bundle, as far as they tell how long it is held.

    Args:
        idle: How long things are held.
    """

    def __init__(self, idle: Idle) -> None:
        self.idle = idle
        self._times = deque[float](maxlen=OFTEN)

    def asked(self, now: float) -> None:
        """Note a request."""
        self._times.append(now)

    @property
    def seconds(self) -> float:
        """Seconds for which the bundle is held after its last request, or before its first one."""
        if not self._times:
            return self.idle.session
        often = len(self._times) == OFTEN and self._times[-1] - self._times[0] <= OFTEN_SECONDS
        return self.idle.often if often else self.idle.rare


@dataclass
class Session:
    """A user's session: when it was used last, and the bundles that it asks."""

    used: float
    bundles: set[str] = field(default_factory=set)


class Sessions:
    """Sessions by their ids, each of which ends some time after its last request, or when it is told to.

    Args:
        seconds: How long a session is held.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._sessions = dict[str, Session]()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, name: str) -> bool:
        return name in self._sessions

    def use(self, name: str, bundle: str, now: float) -> None:
        """Begin a session, or go on with it."""
        session = self._sessions.pop(name, None) or Session(now)
        session.used = now
        session.bundles.add(bundle)
        self._sessions[name] = session  # behind those that were used before

    def end(self, name: str) -> set[str]:
        """End a session, and return the bundles that it has asked."""
        return self._sessions.pop(name).bundles if name in self._sessions else set()

    def over(self, now: float) -> list[str]:
        """Return the sessions whose time is over, and the oldest of too many."""
        names = [*self._sessions]
        surplus = names[: max(0, len(names) - MAX_SESSIONS)]
        return [name for name in names if name in surplus or now - self._sessions[name].used > self.seconds]

    def hold(self, bundle: str) -> bool:
        """Return whether a session holds a bundle."""
        return any(bundle in session.bundles for session in [*self._sessions.values()])


class Rounds:
    """Rounds of cleaning up: after so many requests, or seconds if there was any request, and behind the last one.

    Args:
        idle: Says when.
    """

    def __init__(self, idle: Idle) -> None:
        self.idle = idle
        self._count, self._last, self._ended = 0, 0.0, 0.0

    def ended(self, now: float) -> None:
        """Count a request that has ended."""
        self._count, self._ended = self._count + 1, now

    def is_due(self, now: float, *, busy: bool) -> bool:
        """Return whether it is time for a round, which then counts as done; `busy` says whether requests run."""
        is_quiet = not busy and now - self._ended >= self.idle.round_quiet
        is_time = self._count >= self.idle.round_requests or now - self._last >= self.idle.round_seconds
        due = bool(self._count) and (is_quiet or is_time)
        if due:
            self._count, self._last = 0, now
        return due
