"""Dimensions that vary -> the sizes of the inputs' samples."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnxscript.optimizer import optimize_ir

from edgeglm.export.graph.passes.infer_types import InferTypes


class StaticShapes(ir.passes.InPlacePass):
    """Fix shapes for a device without dynamic ones; what was computed from the shapes becomes constants.

    Args:
        shapes: The sizes of each input, by its name. An input of another rank, or of another fixed size, stays.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fix every input that varies, and what follows from it."""
        modified = False
        for value in model.graph.inputs:
            sizes = self.shapes.get(f"{value.name}")
            if sizes is not None and value.shape is not None and _fits(value.shape, sizes):
                modified |= list(value.shape) != list(sizes)
                value.shape = ir.Shape(sizes)
        if modified:
            _forget(model.graph)
            InferTypes()(model)
            optimize_ir(model, input_size_limit=1 << 10, output_size_limit=1 << 16)
        return ir.passes.PassResult(model, modified)


def _fits(shape: ir.Shape, sizes: tuple[int, ...]) -> bool:
    return len(shape) == len(sizes) and all(
        not isinstance(known, int) or known == size for known, size in zip(shape, sizes, strict=True)
    )


def _forget(graph: ir.Graph) -> None:
    """Drop the shapes inside, which hold the names of the dimensions that varied."""
    for node in graph:
        for value in node.outputs:
            if value.shape is not None and any(not isinstance(size, int) for size in value.shape):
                value.shape = None
