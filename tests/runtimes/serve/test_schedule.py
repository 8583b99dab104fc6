"""The order of requests: priorities, shares of kinds, ageing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from edgeglm.runtimes.serve.schedule import AGE_SECONDS, PAID_BACK, WEIGHTS, Claim, Kind, Priority, Schedule


class Line:
    """Claims that are served a second at a time, on a clock of the test's own."""

    def __init__(self) -> None:
        self.schedule, self.time, self.claims = Schedule(WEIGHTS), 0.0, list[Claim]()
        self.served = Counter[Claim]()

    def come(self, kind: Kind = "text", priority: Priority = "normal") -> Claim:
        claim = Claim(kind, priority, self.time)
        self.schedule.enter(claim)
        self.claims.append(claim)
        return claim

    def go(self, claim: Claim) -> None:
        self.claims.remove(claim)
        self.schedule.leave(claim)

    def serve(self, seconds: float = 1.0) -> Claim:
        first = min(self.claims, key=lambda claim: self.schedule.order(claim, self.time))
        self.schedule.serve([first], self.time, self.time + seconds)
        self.time += seconds
        self.served[first] += 1
        return first


@pytest.fixture
def line() -> Line:
    return Line()


def test_kinds_get_their_shares_whatever_the_order_in_which_they_came(line: Line) -> None:
    claims = {kind: line.come(kind) for kind in ("text", "vision", "speech")}
    for _ in range(2000):
        line.serve(0.01)  # too short for anyone to age
    for kind, share in WEIGHTS.items():
        assert line.served[claims[kind]] / 2000 == pytest.approx(share, abs=0.01)


def test_a_kind_is_not_owed_the_time_in_which_it_asked_for_nothing(line: Line) -> None:
    text = line.come("text")
    for _ in range(1000):
        line.serve(0.01)
    vision = line.come("vision")
    for _ in range(500):
        line.serve(0.01)
    assert line.served[vision] == pytest.approx(300, abs=3)
    assert line.served[text] == pytest.approx(1200, abs=3)


def test_equals_are_served_as_they_came(line: Line) -> None:
    first, second = line.come(), line.come()
    assert line.serve(0.01) is first
    line.go(first)
    assert line.serve(0.01) is second


def test_a_higher_priority_goes_first_whatever_its_kind_has_had(line: Line) -> None:
    line.come("speech", "normal")
    high = line.come("text", "high")
    line.come("speech", "low")
    assert {line.serve(0.01) for _ in range(100)} == {high}


def overtaken(line: Line, priority: Priority) -> tuple[Claim, Callable[[], None]]:
    """A claim, and what brings a new one of high priority each second."""
    claim, others = line.come("text", priority), list[Claim]()

    def step() -> None:
        others.append(line.come("text", "high"))
        if (served := line.serve(0.5)) is not claim:
            line.go(served)

    return claim, step


@pytest.mark.parametrize(("priority", "levels"), [("normal", 1), ("low", 2)])
def test_nobody_starves_under_requests_above_it(line: Line, priority: Priority, levels: int) -> None:
    claim, step = overtaken(line, priority)
    while not line.served[claim]:
        step()
    assert levels * AGE_SECONDS <= line.time <= levels * AGE_SECONDS + 1
    for _ in range(1000):
        step()
    assert line.served[claim] / 1000 == pytest.approx(1 / (1 + PAID_BACK), rel=0.2)
