"""What is measured on a board, of what its runner prints."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from edgeglm.errors import UsageError
from edgeglm.export.burn.figures import _latency
from edgeglm.export.burn.ways import open_board

PHASES = {
    "start": 1000.0, "read image": 10.0, "load vision": 500.0, "encode image": 20.0, "release vision": 7.0,
    "load decoder": 300.0, "prefill": 30.0, "decode": 400.0,
}  # fmt: skip


def test_an_answers_time_is_without_what_is_done_once() -> None:
    phases = [{"name": name, "ms": ms} for name, ms in PHASES.items()]
    answer = {"phases": phases, "decode_tokens_per_second": 63.0}
    assert _latency(answer) == pytest.approx(10 + 20 + 30 + 1000)


def test_what_is_emulated_is_no_board() -> None:
    with pytest.raises(UsageError, match="not those of a board"):
        open_board("qemu", "python3")
    assert open_board("ssh pi@board", "python3").title == "ssh pi@board"
