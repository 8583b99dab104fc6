"""The steps of every engine have the same functions, and an engine that needs no such step has no such file."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

from edgeglm.devices.loader import load_profile
from edgeglm.engines import ENGINES
from edgeglm.export.model import Choice
from edgeglm.export.targets import base
from edgeglm.export.targets.litert import check as litert_check
from edgeglm.export.targets.litert import peak as litert_peak
from edgeglm.export.targets.litert import write as litert_write
from edgeglm.export.targets.ort import graph as ort_graph
from edgeglm.export.targets.qnn import calibrate as qnn_calibrate
from edgeglm.export.targets.qnn import check as qnn_check
from edgeglm.export.targets.qnn import compile as qnn_compile
from edgeglm.export.targets.qnn import graph as qnn_graph
from edgeglm.export.targets.qnn import quantize as qnn_quantize
from edgeglm.export.targets.tensorrt import graph as tensorrt_graph
from edgeglm.export.targets.tensorrt import quantize as tensorrt_quantize


def _functions(protocol: type[Any]) -> dict[str, list[inspect.Parameter]]:
    return {
        name: list(inspect.signature(value).parameters.values())[1:]
        for name, value in vars(protocol).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("module", "protocol"),
    [
        (litert_check, base.CheckStep),
        (litert_peak, base.PeakStep),
        (litert_write, base.WriteStep),
        (qnn_calibrate, base.CalibrateStep),
        (qnn_check, base.CheckStep),
        (qnn_compile, base.CompileStep),
        (ort_graph, base.GraphStep),
        (qnn_graph, base.GraphStep),
        (tensorrt_graph, base.GraphStep),
        (qnn_quantize, base.QuantizeStep),
        (tensorrt_quantize, base.QuantizeStep),
    ],
)
def test_a_step_has_the_functions_of_its_protocol(module: ModuleType, protocol: type[Any]) -> None:
    expected = _functions(protocol)
    assert expected
    for name, parameters in expected.items():
        found = list(inspect.signature(getattr(module, name)).parameters.values())
        assert [each.name for each in found] == [each.name for each in parameters]


def test_steps_are_found_by_the_engine() -> None:
    assert base.graph_step("tensorrt") is tensorrt_graph
    assert base.quantize_step("qnn") is qnn_quantize
    assert [base.graph_step(engine).SIZED for engine in load_profile("qcs6490").engines.value[:1]] == [False]


def test_an_engine_without_a_step_has_no_file_for_it() -> None:
    choices = [Choice("decoder", "fp32", engine.placement, engine.name, engine.dialect) for engine in ENGINES.values()]
    written = {choice.engine: step for choice in choices if (step := base.write_step(choice))}
    compiled = {choice.engine: made for choice in choices if (made := base.compile_step(choice))}
    assert (written["litert"], compiled["qnn"]) == (litert_write, qnn_compile)
    assert not {"ort", "tensorrt"} & {*written, *compiled}
    checks, calibrations, peaks = (
        list(steps(choices)) for steps in (base.check_steps, base.calibrate_steps, base.peak_steps)
    )
    assert [step for step in checks if step in (qnn_check, litert_check)] == [qnn_check, litert_check]
    assert qnn_calibrate in calibrations
    assert litert_peak in peaks
