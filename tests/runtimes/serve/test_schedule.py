"""The order of requests: priorities, shares of kinds, ageing."""

from __future__ import annotations

from collections import Counter

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


@pytest.mark.parametrize(("priority", "levels"), [("normal", 1), ("low", 2)])
def test_nobody_starves_under_requests_above_it(line: Line, priority: Priority, levels: int) -> None:
    """A claim that a new one of high priority overtakes every half a second."""
    claim, first, turns = line.come("text", priority), 0.0, 0
    for _ in range(2000):
        high = line.come("text", "high")
        while (served := line.serve(0.1)) is claim:
            first = first or line.time
            turns += 1
        assert served is high
        line.serve(0.4)
        line.go(high)
    assert first == pytest.approx(levels * AGE_SECONDS, abs=1)
    assert turns * 0.1 / line.time == pytest.approx(1 / (1 + PAID_BACK), rel=0.2)


def test_a_claim_takes_the_place_of_a_lower_one_unless_that_has_waited_for_its_turn(line: Line) -> None:
    normal, low, high = line.come(), line.come("text", "low"), line.come("text", "high")
    assert high.displaces(low, 0.0)
    assert normal.displaces(low, 0.0)
    assert not low.displaces(normal, 0.0)
    assert not normal.displaces(high, 0.0)
    later = 100 * AGE_SECONDS
    assert not line.come().displaces(normal, later)  # equals do not, however long one has waited
    assert not high.displaces(normal, later)
    line.schedule.serve([normal], later, later + 0.9 * AGE_SECONDS / PAID_BACK)
    assert not high.displaces(normal, normal.since)
    line.schedule.serve([normal], normal.since, normal.since + 0.2 * AGE_SECONDS / PAID_BACK)
    assert high.displaces(normal, normal.since)
