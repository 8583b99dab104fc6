"""The page says of every cell what is known of it, and why the rest is not."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from edgeglm.errors import BudgetError, UsageError
from edgeglm.export.matrix.outcome import (
    Cell,
    Outcome,
    Part,
    Stage,
    read_outcomes,
    untried,
    write_outcomes,
)
from edgeglm.export.matrix.page import page
from edgeglm.manifest import Metric

DOCS = Path(__file__).parents[3] / "docs"
VERSIONS = {"edgeglm": "0.1.0", "onnxruntime": "1.31.1"}


def cell(target: str, precision: str = "int8") -> Cell:
    return Cell(None, "demo", target, precision, "onnx", "a" * 64)


def metric(name: str, reference: float, artifact: float, drop: float, limit: float) -> Metric:
    return Metric(name, 64, reference, artifact, drop, (drop, drop), limit, passed=True)


WORKS = msgspec.structs.replace(
    untried(cell("cpu", "auto"), VERSIONS, ""),
    finished=True,
    exported=Stage("done"),
    compiled=Stage("not needed"),
    executed=Stage("done", "onnxruntime 1.31.1, x86_64"),
    validated=Stage("done"),
    modules=(Part("embedding", "fp16", 10, 0.0), Part("vision", "int8", 10, 0.025), Part("decoder", "int4", 9, 0.3)),
    samples=64,
    metrics=(metric("action_type", 1, 1, 0, 0.02), metric("step_success", 0.9, 0.885, 0.015, 0.02)),
    bundle_bytes=3 << 20,
    export_peak_rss_bytes=1 << 30,
    peak_rss_bytes=90 << 20,
)
REFUSED = msgspec.structs.replace(
    untried(cell("jetson-xavier"), VERSIONS, ""),
    finished=True,
    exported=Stage("failed", "jetson-xavier: has *opset* 17"),
)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def test_a_row_says_what_came_of_its_cell() -> None:
    text = page([WORKS, REFUSED, untried(cell("rpi5"), VERSIONS, "")])
    assert rows(text)[1:] == [
        ["cpu", "auto: vision int8, decoder int4", "onnx", "yes", "-", "onnxruntime 1.31.1, x86_64", "0.3",
         "step_success 88.50%, drop 1.50% (64)", "3MiB", "90MiB"],
        ["jetson-xavier", "int8", "onnx", "**failed**", *["**not run**"] * 2, "-", "**not run**", "-", "-"],
        ["rpi5", "int8", "onnx", *["**not run**"] * 3, "-", "**not run**", "-", "-"],
    ]  # fmt: skip
    assert r"- jetson-xavier int8 onnx: export failed: jetson-xavier: has \*opset\* 17" in text.splitlines()
    assert "1. edgeglm 0.1.0, onnxruntime 1.31.1" in text.splitlines()


def test_a_text_model_has_its_perplexity_and_one_that_lost_too_much_says_so() -> None:
    metrics = (metric("perplexity", 12.5, 14.25, 0.14, 0.02),)
    lost = msgspec.structs.replace(WORKS, metrics=metrics, validated=Stage("failed", "perplexity drops by 14%"))
    text = page([lost])
    assert rows(text)[1][7] == "**failed**: perplexity 14.25, drop 14.00% (64)"
    assert "- cpu auto onnx: validate failed: perplexity drops by 14%" in text.splitlines()


def test_one_reason_of_many_cells_is_told_once() -> None:
    same = [msgspec.structs.replace(REFUSED, precision=precision) for precision in ("int4", "int8")]
    assert page(same).count("has \\*opset\\* 17") == 1
    assert "- jetson-xavier int4 onnx, jetson-xavier int8 onnx: export failed" in page(same)


def test_rows_of_other_versions_say_which() -> None:
    older = msgspec.structs.replace(REFUSED, environment={"edgeglm": "0.0.9"})
    text = page([WORKS, older])
    assert [row[-1] for row in rows(text)] == ["versions", "1", "2"]
    assert "2. edgeglm 0.0.9" in text.splitlines()


KEPT = {WORKS.identity: WORKS, REFUSED.identity: REFUSED}


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    assert read_outcomes(file) == ({}, 0)
    write_outcomes(file, [WORKS, REFUSED])
    assert read_outcomes(file) == (KEPT, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.json"]


def test_outcomes_that_the_disk_has_no_room_for_leave_the_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    write_outcomes(file, [WORKS])
    handler, before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(BudgetError, match=r"matrix\.json: a file of it may not become so large here"):
            write_outcomes(file, [WORKS, REFUSED])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_outcomes(file) == ({WORKS.identity: WORKS}, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.json"]


def test_a_damaged_outcome_is_left_out_and_the_others_stand(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    write_outcomes(file, [WORKS, REFUSED])
    whole = file.read_text()
    file.write_text(whole.replace('"reference": 0.9,', '"reference": 0.91,'))
    assert file.read_text() != whole
    assert read_outcomes(file) == ({REFUSED.identity: REFUSED}, 1)
    file.write_text('{"matrix_schema": 1, "outcomes": [{}]}')
    assert read_outcomes(file) == ({}, 1)


def test_no_changed_bit_of_the_file_is_believed(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    write_outcomes(file, [WORKS, REFUSED])
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        file.write_bytes(data)
        with suppress(UsageError):
            found, damaged = read_outcomes(file)
            assert found.items() <= KEPT.items()
            assert len(found) + damaged in (0, 2)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"outcomes": []}', '{"matrix_schema": 2}', "\x00", "mine"])
def test_what_is_no_file_of_a_matrix_is_one_line_and_stays(content: str, tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"holds no results of a matrix: .*; remove it"):
        read_outcomes(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UsageError, match="is not a regular file; remove it"):
        read_outcomes(file)


@pytest.mark.parametrize(
    ("change", "stands"),
    [({}, True), ({"finished": False}, False), ({"environment": {}}, False), ({"inputs": "b" * 64}, False)],
    ids=["same", "cut short", "other versions", "other inputs"],
)
def test_only_a_finished_outcome_of_the_same_stands(change: dict[str, object], stands: bool) -> None:
    outcome: Outcome = msgspec.structs.replace(WORKS, **change)
    assert outcome.answers(cell("cpu", "auto"), VERSIONS) is stands
    assert not outcome.answers(cell("cpu", "int4"), VERSIONS)


def test_the_page_in_the_documentation_is_what_its_outcomes_make() -> None:
    kept, damaged = read_outcomes(DOCS / "compatibility.json")
    assert damaged == 0
    assert (DOCS / "compatibility.md").read_text() == page(kept.values())
    assert len({outcome.target for outcome in kept.values()}) >= 8
