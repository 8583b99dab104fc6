"""What is given back and when, on a clock of the test's own; and that it is had again unasked."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.memory import current_rss
from edgeglm.runtimes.core.grammars import GrammarText
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.release import MAX_SESSIONS, OFTEN, Hooks, Idle, Rounds, Sessions, Uses
from tests.runtimes.serve.conftest import question, serving
from tests.runtimes.serve.engines import LONG


def test_what_is_asked_often_is_held_longer() -> None:
    uses = Uses(Idle(often=30, rare=5, session=300))
    assert uses.seconds == 300  # nobody has asked yet
    for time_ in (0.0, 10.0):
        uses.asked(time_)
        assert uses.seconds == 5
    uses.asked(20.0)
    assert uses.seconds == 30
    for time_ in (200.0, 400.0):
        uses.asked(time_)
    assert uses.seconds == 5


def test_hooks_run_last_in_first_out_and_survive_each_others_errors(capfd: pytest.CaptureFixture[str]) -> None:
    ran, hooks = list[int](), Hooks()
    hooks.add(lambda: ran.append(1))
    hooks.add(lambda: 1 // 0)
    hooks.add(lambda: ran.append(2))
    assert (hooks.run(), ran) == (1, [2, 1])
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert (hooks.run(), ran) == (0, [2, 1])


def test_a_session_holds_its_bundles_until_its_time_is_over() -> None:
    sessions = Sessions(300)
    sessions.use("me", "a", 0.0)
    sessions.use("you", "a", 100.0)
    sessions.use("me", "b", 200.0)
    assert sessions.over(400.0) == []
    assert sessions.over(401.0) == ["you"]
    assert sessions.end("you") == {"a"}
    assert (sessions.hold("a"), sessions.hold("b"), "you" in sessions) == (True, True, False)
    assert sessions.end("me") == {"a", "b"}
    assert (sessions.hold("a"), sessions.end("me")) == (False, set())


def test_the_oldest_of_too_many_sessions_end() -> None:
    sessions = Sessions(300)
    for number in range(MAX_SESSIONS + 2):
        sessions.use(str(number), "a", 0.0)
    assert sessions.over(0.0) == ["0", "1"]


def test_a_round_comes_after_so_many_requests_or_seconds() -> None:
    rounds = Rounds(Idle(round_requests=3, round_seconds=60))
    assert not rounds.is_due(1000.0, busy=True)  # nothing was asked
    rounds.ended(1000.0)
    assert rounds.is_due(1000.0, busy=True)
    rounds.ended(1000.0)
    assert not rounds.is_due(1059.0, busy=True)
    assert rounds.is_due(1060.0, busy=True)
    for _ in range(3):
        assert not rounds.is_due(1061.0, busy=True)
        rounds.ended(1061.0)
    assert rounds.is_due(1061.0, busy=True)


def test_a_round_comes_once_behind_the_last_request() -> None:
    rounds = Rounds(Idle(round_quiet=5))
    rounds.ended(100.0)
    assert rounds.is_due(100.0, busy=True)
    rounds.ended(101.0)
    assert not rounds.is_due(105.0, busy=False)
    assert not rounds.is_due(106.0, busy=True)
    assert rounds.is_due(106.0, busy=False)
    assert not rounds.is_due(120.0, busy=False)


class Held:
    """An engine whose thread the test is."""

    def __init__(self, bundle: Path, slots: int = 1) -> None:
        self.time, self.name = 0.0, bundle.name
        idle = Idle(often=30, rare=5, session=300)
        self.engine = Engine(
            {bundle.name: bundle}, lambda folder: Runner(folder, 1, slots=slots), waiting=1, idle=idle, max_ram=None,
            now=lambda: self.time,
        )  # fmt: skip

    def ask(self, session: str | None = None, text: str = "Select OK") -> str:
        """Answer as the engine does, and return the text."""
        bundles = self.engine.bundles
        bundles.uses[self.name].asked(self.time)
        if session:
            self.engine.sessions.use(session, self.name, self.time)
        runner = bundles.take(self.name).runner.beside()
        runner.user = session
        return runner.answer(question(text), max_new_tokens=4).text

    def is_held(self, seconds: float) -> bool:
        """Return whether the bundle is in memory so many seconds later."""
        self.time += seconds
        self.engine.release()
        return self.name in self.engine.bundles.loaded


@pytest.mark.parametrize("slots", [1, 2])
def test_a_round_gives_back_what_a_long_prompt_took_and_keeps_its_state(exact: Path, slots: int) -> None:
    held, resident = Held(exact, slots), list[int]()
    for text in ("Select OK", LONG):
        first = held.ask("me", text)
        resident.append(current_rss())
        held.engine.rounds.ended(held.time)
        assert held.is_held(6)
        resident.append(current_rss())
    _, before, taken, left = resident
    assert 4 * (left - before) < taken - before > 16 << 20
    assert held.ask("me", LONG) == first
    assert held.engine.bundles.released["error"] == 0
    held.engine.bundles.release([exact.name], "end")


def test_a_round_forgets_grammars_that_requests_brought(exact: Path) -> None:
    pytest.importorskip("llguidance")
    held = Held(exact)
    held.ask("me")
    grammars = held.engine.bundles.loaded[exact.name].runner.grammars
    grammar = weakref.ref(grammars.find(GrammarText("schema", '{"type": "string"}', is_schema=True)))
    assert grammar() is not None
    held.engine.rounds.ended(held.time)
    assert held.is_held(6)
    assert grammar() is None
    held.engine.bundles.release([exact.name], "end")


def test_a_bundle_is_held_as_long_as_it_was_asked_often_and_loaded_again_unasked(exact: Path) -> None:
    held = Held(exact)
    first = held.ask()
    assert held.is_held(5)
    assert not held.is_held(0.1)
    for _ in range(OFTEN):
        assert held.ask() == first
    assert held.is_held(30)
    assert not held.is_held(0.1)
    assert held.engine.bundles.released["idle"] == 2


def test_a_session_holds_the_bundle_and_its_end_gives_the_answers_memory_back(exact: Path) -> None:
    held = Held(exact)
    first = held.ask("me")
    assert held.is_held(300)
    states = held.engine.bundles.loaded[exact.name].runner.states
    assert states.held > 0
    assert held.engine.end_session("me")
    assert not held.is_held(0)  # it was not asked for long, and nothing else holds it
    assert not held.engine.end_session("me")
    assert held.ask("me") == first
    held.ask("you")
    assert held.engine.end_session("me")
    assert held.is_held(0)
    states = held.engine.bundles.loaded[exact.name].runner.states
    assert states.held > 0  # of the other session
    assert held.engine.end_session("you")
    assert held.is_held(0)
    assert states.held == 0
    held.engine.bundles.release([exact.name], "end")


def test_an_error_of_one_bundle_keeps_no_other_in_memory(exact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    held = Held(exact)
    held.ask()
    held.engine.bundles.loaded[exact.name].hooks.add(lambda: 1 // 0)
    assert not held.is_held(6)
    assert held.engine.bundles.released["error"] == 1
    assert 'edgeglm_released_total{reason="error"} 1.0' in held.engine.metrics.page().decode()
    assert "ZeroDivisionError" in capfd.readouterr().err


def ask(url: str, screen: int, headers: dict[str, str] | None = None, **fields: Any) -> None:
    body = json.dumps({"messages": question("Select OK", screen), "max_tokens": 4, **fields}).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", body, sent), timeout=60) as response:
        assert response.status == 200


def end(url: str, session: str) -> int:
    request = urllib.request.Request(f"{url}/sessions/{session}", method="DELETE")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response) == {"id": session, "object": "session", "deleted": True}
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url.replace("/v1", "/metrics"), timeout=60) as response:
        found = re.search(rf"^{re.escape(name)} (\S+)$", response.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def test_a_session_is_a_header_or_the_user_and_ends_when_its_client_says_so(address: str) -> None:
    ask(address, 1, {"X-Session-Id": "phone/1"}, user="other")
    ask(address, 1, user="me")
    assert metric(address, "edgeglm_sessions") == 2
    assert (end(address, "other"), end(address, "phone/1"), end(address, "me")) == (404, 200, 200)
    deadline = time.monotonic() + 30
    while metric(address, "edgeglm_sessions"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert end(address, "me") == 404
    assert metric(address, 'edgeglm_released_total{reason="session"}') == 2


@pytest.mark.parametrize("slots", ["1", "2"])
def test_memory_after_a_release_is_that_before_the_first_request(exact: Path, slots: str) -> None:
    with serving(exact, "--idle", "often=1,rare=1,session=60", "--slots", slots, "--threads", "1") as (_, url):
        before = metric(url, "edgeglm_resident_bytes")
        for screen in range(1, 4):
            ask(url, screen)
        deadline = time.monotonic() + 30
        while not metric(url, 'edgeglm_released_total{reason="idle"}'):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert metric(url, "edgeglm_resident_bytes") <= 1.05 * before
        ask(url, 4)
