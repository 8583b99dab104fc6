"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from edgeglm.telemetry import disable_telemetry
from edgeglm.worker import Worker
from tests.loaded_workers import Loaded

# Before a test imports an engine.
disable_telemetry()
# Beside other processes of the suite, each has its own cores: threads that share one wait for each other, spinning.
if "PYTEST_XDIST_WORKER" in os.environ:
    _number, _workers = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, _cores[_number::_workers] or _cores)
# A shell that starts the tests in the background has them ignore interrupts, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("adversary", "fuzzers of tests/adversary")
    group.addoption("--seconds", type=float, default=1.5, help="how long each fuzzer goes on (default: a slice, 1.5)")
    group.addoption("--seed", type=int, default=1, help="which attempts they make (default: 1)")


def pytest_configure(config: pytest.Config) -> None:
    """Make a folder for the bundles that all processes share (tests/runtimes/demo.py), unless one is given.

    Processes that are started inherit one thread of numpy's, whose import by a plugin may come before this file's. A
    second thread spins while the first, on the same core, has to wait.
    """
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "EDGEGLM_TEST_BUNDLES" not in os.environ:
        folder = TemporaryDirectory(prefix="edgeglm-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["EDGEGLM_TEST_BUNDLES"] = folder.name


def pytest_collection_finish() -> None:
    """Keep what was imported out of the search for garbage, which would look through it again and again."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first: one that began last would run alone in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the fuzzers tried and found, as the table of docs/robustness.md."""
    reports = [each for kind in ("", "error") for each in terminalreporter.stats.get(kind, [])]  # a fixture's end
    ended = [report for report in reports if getattr(report, "when", None) == "teardown"]
    rows = sorted(value for report in ended for name, value in report.user_properties if name == "fuzzer")
    if rows:
        terminalreporter.section("fuzzers")
        for row in ("| fuzzer | attempts | outcomes | faults |", "| --- | --- | --- | --- |", *rows):
            terminalreporter.write_line(row)


@pytest.fixture(scope="session", autouse=True)
def loaded_workers() -> Iterator[Loaded]:
    """Fork the workers that this process starts from loaded ones; a command in another process starts its own."""
    loaded, run = Loaded(), Worker.run

    def run_loaded(worker: Worker[Any], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        if loaded.starts(worker):
            worker = replace(worker, start=partial(loaded.start, worker.module))
        return run(worker, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "run", run_loaded)
        yield loaded
    loaded.close()


@pytest.fixture
def own_workers(loaded_workers: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every worker as users do: what is tested is its start."""
    monkeypatch.setattr(loaded_workers, "is_used", False)
