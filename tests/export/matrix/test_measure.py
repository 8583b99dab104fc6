"""What is made of a manifest and of the runner's answer; tests/cli/test_matrix.py measures for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeglm.export.matrix.measure import Measurement, Plan, _executed, _is_final, export_arguments
from edgeglm.export.matrix.outcome import Cell, Stage
from edgeglm.export.matrix.programs import Done

COMPILED = {"by": "QNN 2.7.0", "chip": "soc_type=X;arch=68", "executed_on": "the NPU's simulator"}


def plan(formats: bool = True) -> Plan:
    return Plan(budget=1 << 30, limit=4, data=None, formats=formats, environment={})


def test_a_module_that_the_export_compiled_says_by_what_and_what_ran_it() -> None:
    modules: list[dict[str, Any]] = [{"engine": "qnn", "compiled": COMPILED}, {"engine": "ort"}]
    compiled, codes = Measurement(plan())._compile({"modules": modules}, Path("bundle"))
    assert (compiled, codes) == (Stage("done", "QNN 2.7.0 for soc_type=X;arch=68"), [])
    answered = Done(0, {"modules": [{"engine": "some engine"}]}, "")
    assert _executed(answered, modules).text.startswith("some engine, the NPU's simulator, ")
    assert _executed(Done(6, {}, "it is damaged"), modules) == Stage("failed", "it is damaged")
    assert Measurement(plan())._compile({"modules": modules[1:]}, Path("bundle"))[0] == Stage("not needed")


@pytest.mark.parametrize("formats", [True, False])
def test_a_format_is_asked_for_where_the_export_has_a_choice(formats: bool) -> None:
    cell = Cell("model", "model", "rpi5", "decoder=int4,vision=fp16", "onnx", "")
    assert list(export_arguments(cell, plan(formats))) == [
        "model", "--target", "rpi5", "--precision", "decoder=int4,vision=fp16",
        *(["--format", "onnx"] if formats else []), "--max-ram", 1 << 30,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "final"), [(0, True), (3, True), (4, True), (6, True), (1, False), (5, False), (-9, False)]
)
def test_bugs_kills_and_want_of_room_are_tried_again(code: int, final: bool) -> None:
    assert _is_final(code) is final
