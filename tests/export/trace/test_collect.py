"""What the exporter collects once is what it would collect for every graph."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from onnxscript._internal.values import TracedOnnxFunction
from torch.onnx._internal.exporter import _decomp, _registration

from edgeglm.export.trace.collect import collect_once

EXPORTER: Any = _decomp


def operators() -> list[tuple[str, object]]:
    apis: Any = vars(_registration)["onnxscript_apis"]
    return [(operator.qualified_name, operator.function) for operator in apis.get_torchlib_ops()]


def test_what_is_collected_once_is_what_is_collected_anew() -> None:
    listed, parse = operators(), TracedOnnxFunction.function_ir
    asked = set(EXPORTER.get_onnx_implemented_overloads(_registration.ONNXRegistry.from_torchlib(opset_version=18)))
    table = EXPORTER.create_onnx_friendly_decomposition_table(asked)
    collect_once()
    assert operators() == listed
    assert TracedOnnxFunction.function_ir is parse
    again = EXPORTER.create_onnx_friendly_decomposition_table(asked)
    assert again.keys() == table.keys()
    again.clear()  # as who asks does
    assert EXPORTER.create_onnx_friendly_decomposition_table(asked).keys() == table.keys()
    collected = _registration.ONNXRegistry.from_torchlib(opset_version=18)
    assert collected is _registration.ONNXRegistry.from_torchlib(opset_version=18)
    assert list(collected.functions)
