"""The steps of every engine have the same functions, and an engine that needs no such step has no such file."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

from edgeglm.devices.loader import load_profile
from edgeglm.export.targets import base
from edgeglm.export.targets.ort import graph as ort_graph
from edgeglm.export.targets.ort import quantize as ort_quantize
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
        (ort_graph, base.GraphStep),
        (qnn_graph, base.GraphStep),
        (tensorrt_graph, base.GraphStep),
        (ort_quantize, base.QuantizeStep),
        (qnn_quantize, base.QuantizeStep),
        (tensorrt_quantize, base.QuantizeStep),
    ],
)
def test_a_step_has_the_functions_of_its_protocol(module: ModuleType, protocol: type[Any]) -> None:
    expected = _functions(protocol)
    assert expected
    for name, parameters in expected.items():
        found = list(inspect.signature(getattr(module, name)).parameters.values())
        assert [(each.name, each.annotation) for each in found] == [(each.name, each.annotation) for each in parameters]


def test_steps_are_found_by_the_engine() -> None:
    assert base.graph_step("tensorrt") is tensorrt_graph
    assert base.quantize_step("qnn") is qnn_quantize
    assert [base.graph_step(engine).SIZED for engine in load_profile("qcs6490").engines.value[:1]] == [False]
