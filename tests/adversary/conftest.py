"""Fuzzers: bounded by ``--seconds`` each, a slice of them in the suite, all of it by ``make adversary``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.adversary.fuzzer import Fuzzer


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Fuzzer]]:
    """Make a fuzzer, whose faults fail the test when it ends."""
    made: list[Fuzzer] = []

    def make(name: str) -> Fuzzer:
        options = request.config.option
        made.append(Fuzzer(name, options.seconds, options.seed))
        return made[-1]

    yield make
    for fuzzer in made:
        request.node.user_properties.append(("fuzzer", fuzzer.row))
    if faults := [fault for fuzzer in made for fault in fuzzer.faults]:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle, as a device gets it."""
    demo = pytest.importorskip("tests.runtimes.demo", reason="exports, which needs torch")
    folder: Path = demo.demo_bundle(tmp_path_factory.mktemp("adversary") / "bundle", "cpu", "int8")
    return folder
