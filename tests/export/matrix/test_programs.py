"""Commands as processes: their object, their line, and their end."""

from __future__ import annotations

import threading
import time

import pytest

from edgeglm.export.matrix.programs import Programs, Stopped


def test_a_command_gives_its_object_and_a_failing_one_its_line() -> None:
    programs = Programs()
    done = programs.run("devices", "rpi5")
    assert (done.code, done.result["name"], done.line) == (0, "rpi5", "")
    done = programs.run("devices", "rpi6")
    assert (done.code, done.result) == (2, {})
    assert done.line.startswith("rpi6: is not a device profile; did you mean rpi5?")


def test_what_runs_is_interrupted_and_nothing_runs_after_that() -> None:
    programs, ended = Programs(), list[BaseException]()

    def work() -> None:
        try:
            programs.run("doctor")
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
        programs.run("devices")
