"""The vision module between requests: who has it, when it goes, and that a server counts it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")

from numpy.typing import NDArray

from edgeglm.runtimes.core.held import HeldEncoder
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.session import Feeds
from edgeglm.runtimes.serve.bundles import Bundles
from edgeglm.runtimes.serve.release import Idle
from edgeglm.runtimes.text.messages import message
from tests.runtimes.demo import OTHER_SCREEN, SCREEN


class Session:
    """One that says whether it was closed."""

    closed = False

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        return {"features": np.zeros((1, 1), np.float32)}

    def close(self) -> None:
        self.closed = True


def hold(held: HeldEncoder) -> Session:
    session, stay = Session(), ExitStack()
    stay.callback(session.close)
    held.nbytes = 7
    held.hold((2, 3), session, stay)
    return session


def test_who_takes_it_releases_it() -> None:
    held = HeldEncoder()
    session = hold(held)
    assert held.taken == 7
    with ExitStack() as stay:
        assert held.take((2, 3), stay) is session
        assert held.taken == 0
        held.release()
        assert not session.closed
    assert session.closed


def test_one_of_another_grid_is_released() -> None:
    held = HeldEncoder()
    session = hold(held)
    with ExitStack() as stay:
        assert held.take((3, 2), stay) is None
        assert session.closed
        assert held.take((2, 3), stay) is None


def test_a_release_ends_its_stay_once() -> None:
    held = HeldEncoder()
    session = hold(held)
    held.release()
    assert session.closed
    held.release()
    assert (held.taken, held.nbytes) == (0, 7)


def test_a_server_releases_it_before_a_bundle(exact: Path, tmp_path: Path) -> None:
    folders = {name: Path(shutil.copytree(exact, tmp_path / name)) for name in ("one", "two")}
    bundles = Bundles(folders, partial(Runner, max_ram=None), 4 << 30, Idle(), lambda: 0.0)
    with ExitStack() as stack:
        stack.callback(lambda: bundles.release([*bundles.loaded], "end"))
        runner = bundles.take("one").runner
        for screen in (SCREEN, OTHER_SCREEN):
            runner.answer([message("user", "Select OK", screen)], max_new_tokens=2)
        taken = runner.pictures.beyond
        assert taken > 0
        assert bundles.peak("one") == runner.window.peak() + taken
        bundles.max_ram = bundles.peak("one") + bundles.peak("two") - 1
        bundles.take("two")
        assert [*bundles.loaded] == ["one", "two"]
        assert runner.pictures.beyond == 0
        assert not runner.pictures.has_room()
