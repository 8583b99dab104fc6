"""What is made of a manifest and of the runner's answer; tests/cli/test_matrix.py measures for real."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest

from edgeglm.export.matrix.measure import Measurement, Plan, _executed, _is_final, export_request
from edgeglm.export.matrix.outcome import Cell, Stage
from edgeglm.export.matrix.programs import Done
from edgeglm.export.requests import ExportRequest
from edgeglm.manifest import Compiled, Module
from tests.bundles import sample_manifest

COMPILED = Compiled(by="QNN 2.7.0", chip="soc_type=X;arch=68", file="x", executed_on="the NPU's simulator")


def plan() -> Plan:
    return Plan(budget=1 << 30, limit=4, data=None, environment={})


def module(engine: Literal["qnn", "ort"], compiled: Compiled | None = None) -> Module:
    return msgspec.structs.replace(sample_manifest().modules[-1], engine=engine, compiled=compiled)


def test_a_module_that_the_export_compiled_says_by_what_and_what_ran_it(tmp_path: Path) -> None:
    modules = [module("qnn", COMPILED), module("ort")]
    compiled, codes = Measurement(plan())._compile(modules, tmp_path, tmp_path / "bundle")
    assert (compiled, codes) == (Stage("done", "QNN 2.7.0 for soc_type=X;arch=68"), [])
    answered = Done({"modules": [{"engine": "ort"}]})
    assert _executed(answered, modules).text.startswith("onnxruntime ")
    assert _executed(Done(None, 6, "it is damaged"), modules) == Stage("failed", "it is damaged")
    assert Measurement(plan())._compile(modules[1:], tmp_path, tmp_path / "bundle")[0] == Stage("not needed")


def test_a_cell_is_the_request_of_its_bundle() -> None:
    cell = Cell("model", "model", "rpi5", "decoder=int4,vision=fp16", "onnx", "")
    assert export_request(cell, plan(), Path("bundle")) == ExportRequest(
        model="model",
        target="rpi5",
        precision="decoder=int4,vision=fp16",
        format="onnx",
        max_ram=1 << 30,
        output=Path("bundle"),
    )


@pytest.mark.parametrize(
    ("code", "final"), [(0, True), (3, True), (4, True), (6, True), (1, False), (5, False), (-9, False)]
)
def test_bugs_kills_and_want_of_room_are_tried_again(code: int, final: bool) -> None:
    assert _is_final(code) is final
