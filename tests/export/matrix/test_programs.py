"""Requests and programs in processes of their own: their results, their lines, and their end."""

from __future__ import annotations

import threading
import time

import pytest

from edgeglm.export.matrix.programs import Programs, Stopped
from edgeglm.export.predict.answer import Forecast
from edgeglm.export.requests import PlanRequest


def test_a_request_gives_its_object_and_a_failing_one_its_line() -> None:
    programs = Programs()
    done = programs.ask(PlanRequest(target="rpi5"), Forecast)
    assert done.result
    assert (done.code, done.result.target, done.line) == (0, "rpi5", "")
    failed = programs.ask(PlanRequest(target="rpi6"), Forecast)
    assert (failed.code, failed.result) == (2, None)
    assert failed.line.startswith("rpi6: is not a device profile; did you mean rpi5?")


def test_the_runner_gives_its_object_and_its_line() -> None:
    done = Programs().run("nowhere", "--prompt", "x")
    assert (done.result, done.code) == (None, 2)
    assert done.line.startswith("nowhere: cannot be read: ")


def test_what_runs_is_interrupted_and_nothing_runs_after_that() -> None:
    programs, ended = Programs(), list[BaseException]()

    def work() -> None:
        try:
            programs.ask(PlanRequest(target="rpi5"), Forecast)
        except Stopped as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not programs._running:
        time.sleep(0.001)
    (process,) = programs._running
    programs.stop()
    thread.join(30)
    assert len(ended) == 1
    assert process.returncode not in (None, 0)
    with pytest.raises(Stopped):
        programs.ask(PlanRequest(target="rpi5"), Forecast)
