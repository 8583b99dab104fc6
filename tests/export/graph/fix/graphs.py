"""Graphs as text, before and after a fix, and what ONNX Runtime computes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def graph(text: str, opset: int = 20) -> ir.Model:
    """A checked graph with the shapes that ONNX infers."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = onnx.parser.parse_model(f"{header}\n{text}")
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def operators(model: ir.Model) -> list[str]:
    """In the order of computation, without constants."""
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def run(model: ir.Model, **inputs: NDArray[Any]) -> NDArray[Any]:
    """The first output in ONNX Runtime, as the graph is written."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    result: NDArray[Any] = session.run(None, inputs)[0]
    return result


def check_fix(
    fix: ir.passes.PassBase, model: ir.Model, before: str, after: str, tolerance: float = 1e-5, **inputs: NDArray[Any]
) -> ir.Model:
    """That a fix turns one list of operators into another, and the same inputs give the same outputs, and only once."""
    assert operators(model) == before.split()
    expected = run(model, **inputs)
    assert fix(model).modified
    assert operators(model) == after.split()
    found = run(model, **inputs)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert not fix(model).modified
    return model


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Random numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
