"""Convolutions over patches as a matrix product."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript")

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgeglm.export.graph.fix.patch_matmul import PatchMatMul
from tests.export.graph.fix.graphs import check_fix, graph, normal


def conv(x: list[int | str], kernel: list[int], *, rows: int = 5, attributes: str = "", strides: str = "") -> ir.Model:
    """y = Conv(x, w, b) with random weights."""
    channels, outputs = x[1], ", ".join(f"o{axis}" for axis in range(len(x)))
    model = graph(
        f"g (float[{_list(x)}] x, float[{rows}, {channels}, {_list(kernel)}] w, float[{rows}] b) "
        f"=> (float[{outputs}] y) "
        f"{{ y = Conv <{', '.join(filter(None, (strides or f'strides = {kernel}', attributes)))}> (x, w, b) }}"
    )
    for value, shape in zip(model.graph.inputs[1:], ((rows, channels, *kernel), (rows,)), strict=True):
        value.const_value = ir.tensor(normal(*map(int, shape), seed=1), name=value.name)
        model.graph.initializers.add(value)
    del model.graph.inputs[1:]
    return model


def _list(sizes: Sequence[int | str]) -> str:
    return ", ".join(map(str, sizes))


def ranks(model: ir.Model) -> int:
    """The most dimensions of what the graph computes, after shape inference."""
    ShapeInferencePass()(model)
    return max(len(value.shape or ()) for node in model.graph for value in node.outputs)


def test_a_patch_embedding_of_two_dimensions() -> None:
    model = conv([2, 3, 8, 12], [4, 4])
    after = "Reshape Transpose Reshape Transpose Reshape MatMul Add Transpose Reshape"
    check_fix(PatchMatMul(), model, "Conv", after, x=normal(2, 3, 8, 12))
    assert ranks(model) == 4


def test_a_patch_embedding_of_three_dimensions() -> None:
    model = conv([1, 3, 4, 8, 6], [2, 4, 3])
    after = "Reshape Transpose Reshape Transpose Reshape Transpose Reshape MatMul Add Transpose Reshape"
    check_fix(PatchMatMul(), model, "Conv", after, x=normal(1, 3, 4, 8, 6))
    assert ranks(model) == 5  # the output's own


def test_a_batch_of_single_patches_as_glm_has_them() -> None:
    model = conv(["patches", 3, 2, 4, 4], [2, 4, 4])
    x = normal(7, 3, 2, 4, 4)
    check_fix(PatchMatMul(), model, "Conv", "Reshape MatMul Add Transpose Reshape", x=x)


def test_the_matrix_is_the_kernels() -> None:
    model = conv([1, 2, 4], [2])
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    PatchMatMul()(model)
    matrix = model.graph.initializers["w.matrix"].const_value
    assert matrix is not None
    assert np.array_equal(matrix.numpy(), weight.numpy().reshape(5, math.prod((2, 2))).T)


@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        ([1, 2, 8, 8], [4, 4], {"strides": "strides = [2, 2]"}),
        ([1, 2, 8, 8], [4, 4], {"attributes": "pads = [1, 1, 1, 1]"}),
        ([1, 2, 8, 8], [2, 2], {"attributes": "dilations = [2, 2]"}),
        ([1, 2, 9, 8], [4, 4], {}),
        ([1, 2, "h", 8], [4, 4], {}),
    ],
    ids=["overlaps", "padded", "dilated", "a rest", "unknown size"],
)
def test_what_is_not_patchwise_stays(x: list[int | str], kernel: list[int], options: dict[str, str]) -> None:
    assert not PatchMatMul()(conv(x, kernel, **options)).modified  # type: ignore[arg-type]
