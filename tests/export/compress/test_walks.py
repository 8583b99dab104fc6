"""Telling how far a walk is, and what ends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import onnx_ir as ir
import pytest

from edgeglm.errors import UsageError
from edgeglm.export.calibrate.walk import Walk
from edgeglm.export.compress.walks import Shown, no_room, run_walk
from edgeglm.export.requests import Progress
from edgeglm.roles import ModuleName


class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def begin(self, module: ModuleName, part: str, graph: ir.Graph) -> None:
        self.heard.append(f"{module}.{part}")

    def end(self) -> None:
        self.heard.append("end")


def test_a_listener_hears_all_and_the_share_that_is_done_is_told() -> None:
    listener, told = Listener(), list[Progress]()
    shown = Shown(listener, 4, told.append)
    for part in ("front", "layer.0"):
        shown.begin("decoder", part, cast(ir.Graph, None))
        shown.end()
    assert listener.heard == ["decoder.front", "end", "decoder.layer.0", "end"]
    assert [progress.done for progress in told] == [0, 0.25]


def test_values_that_are_not_finite_are_a_line_about_the_samples() -> None:
    class Broken:
        def logits(self) -> Iterator[Any]:
            yield None
            raise ValueError("what w is multiplied by is not finite")

    with pytest.raises(UsageError, match="--calibration: what w is multiplied by is not finite; check the model"):
        run_walk(cast(Walk, Broken()))


def test_matrices_without_room_are_one_note() -> None:
    assert no_room([], "to refit", "columns are only left out") == []
    (one,) = no_room(["first"], "to refit", "columns are only left out")
    assert one == "--max-ram has no room to refit first: columns are only left out"
    (three,) = no_room(["first", "second", "third"], "to refit", "columns are only left out")
    assert three == "--max-ram has no room to refit first and 2 more: columns are only left out"
