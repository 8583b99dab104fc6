"""The order in which requests are computed: by priority, among equals by what their kinds have had, then by arrival.

Kinds share the engine's time by stride scheduling: a kind's pass grows by the time that it was served, divided by its
weight, and the kind with the least pass is next. A request ages while it waits, and so rises in priority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Literal

Kind = Literal["speech", "vision", "text"]
Priority = Literal["low", "normal", "high"]
WEIGHTS: Mapping[Kind, float] = {"speech": 0.5, "vision": 0.3, "text": 0.2}
LEVELS: tuple[Priority, ...] = ("low", "normal", "high")
# Seconds of waiting that raise a request by a priority, and how many of them a second of service takes back: one that
# others overtake without end has a turn of half a second every ten.
AGE_SECONDS, PAID_BACK = 10.0, 20.0


@dataclass(eq=False)
class Claim:
    """A request's claim to the engine.

    Args:
        kind: Of the request.
        priority: As its client asked.
        since: When it was served last, or when it came, in seconds.

    Attributes:
        number: Of its arrival, once it has entered a schedule.
        aged: Seconds that it had waited by then and that were not paid back: no more than raise it to the top.
        raised: By how many priorities it is raised until all of them are.
    """

    kind: Kind
    priority: Priority
    since: float
    number: int = 0
    aged: float = 0.0
    raised: int = 0

    @property
    def base(self) -> int:
        """The place of its priority in LEVELS."""
        return LEVELS.index(self.priority)

    def waited(self, now: float) -> float:
        """Return the seconds of waiting that count."""
        return self.aged + now - self.since

    def level(self, now: float) -> int:
        """Return its place in LEVELS, raised by what it has waited."""
        raised = max(self.raised, int(self.waited(now) // AGE_SECONDS))
        return min(self.base + raised, len(LEVELS) - 1)

    def serve(self, start: float, end: float) -> None:
        """Note that it was served from start to end, in seconds."""
        most = AGE_SECONDS * (len(LEVELS) - 1 - self.base)
        self.raised = self.level(start) - self.base
        self.aged = max(0.0, min(most, self.waited(start)) - PAID_BACK * (end - start))
        self.raised, self.since = self.raised if self.aged else 0, end

    def displaces(self, other: Claim, now: float) -> bool:
        """Return whether it takes another one's place: that of a lower priority, unless it has waited for its turn."""
        return self.base > other.base and self.level(now) > other.level(now)


class Schedule:
    """Claims to an engine, in the order in which they are served.

    Args:
        weights: Of the kinds: their shares while all of them wait.
    """

    def __init__(self, weights: Mapping[Kind, float]) -> None:
        self.weights = dict(weights)
        self._passes = dict.fromkeys(self.weights, 0.0)
        self._claims = Counter[Kind]()
        self._numbers, self._lock = count(), Lock()

    def enter(self, claim: Claim) -> None:
        """Take a claim in; a kind that had none is not owed the time in which it asked for nothing."""
        with self._lock:
            claim.number = next(self._numbers)
            if not self._claims[claim.kind]:
                others = (self._passes[kind] for kind, claims in self._claims.items() if claims)
                self._passes[claim.kind] = max(self._passes[claim.kind], min(others, default=0.0))
            self._claims[claim.kind] += 1

    def leave(self, claim: Claim) -> None:
        """Let a claim go; when the last one has gone, nothing is owed to anyone."""
        with self._lock:
            self._claims[claim.kind] -= 1
            if not self._claims.total():
                self._passes = dict.fromkeys(self.weights, 0.0)

    def serve(self, claims: Iterable[Claim], start: float, end: float) -> None:
        """Charge claims that were served together with what it took, from start to end in seconds."""
        served = [*claims]
        for claim in served:
            with self._lock:
                self._passes[claim.kind] += (end - start) / len(served) / self.weights[claim.kind]
            claim.serve(start, end)

    def order(self, claim: Claim, now: float) -> tuple[int, float, int]:
        """Return a key by which the claim that is to be served first is the least."""
        return -claim.level(now), self._passes[claim.kind], claim.number
