"""``edgeglm bench``: figures of a runner that has answered several screens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeglm.machine import read_machine
from tests.cli.commands import check_failure, run
from tests.runtimes.conftest import exact

__all__ = ["exact"]
Capture = pytest.CaptureFixture[str]


def test_figures_are_of_this_process(exact: Path, capsys: Capture) -> None:
    status, out, err = run(capsys, "bench", exact, "--requests", 3, "--max-new-tokens", 8, "--threads", 1, "--json")
    result = json.loads(out)
    assert (status, err) == (0, "")
    assert (result["bundle"], result["threads"], result["requests"]) == (str(exact), 1, 3)
    speeds = [result[name] for name in ("prefill_tokens_per_second", "decode_tokens_per_second")]
    assert all(speed > 1 for speed in speeds)
    assert 0 < result["first_token_warm_ms"] < 60_000
    assert result["peak_rss_bytes"] > 30 << 20
    assert result["int8_kernels"] == read_machine().int8_kernels
    lines = run(capsys, "bench", exact, "--requests", 2, "--max-new-tokens", 4)[1].splitlines()
    assert [line.split()[0] for line in lines] == ["first", "prefill", "decode", "peak", "int8"]


def test_what_is_no_bundle_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    check_failure(run(capsys, "bench", tmp_path), 2, "is not a bundle")
    check_failure(run(capsys, "bench", tmp_path, "--requests", 1), 2, "'--requests': 1 is not in the range")
