"""Describe a prepared module for the manifest."""

from __future__ import annotations

from edgeglm import manifest
from edgeglm.export.prepare.types import PreparedModule
from edgeglm.export.write.describe import describe_tensors


def describe_shape(shape: PreparedModule, error: float | None) -> manifest.Shape:
    """Return the entry of a graph for a further grid, with its error against the original."""
    assert shape.graph is not None
    assert shape.grid is not None
    inputs, outputs = (
        describe_tensors(list(tensors)) for tensors in (shape.graph.graph.inputs, shape.graph.graph.outputs)
    )
    return manifest.Shape(grid=shape.grid, file=shape.file, inputs=inputs, outputs=outputs, max_relative_error=error)


def describe_module(
    module: PreparedModule,
    error: float,
    compiled: manifest.Compiled | None,
    wide: tuple[str, ...],
    shapes: tuple[manifest.Shape, ...],
) -> manifest.Module:
    """Return a module's entry.

    Args:
        module: What was written.
        error: Its error against the original.
        compiled: What an NPU's compiler made of it.
        wide: What is kept in fp32, since its values are too large for fp16.
        shapes: The entries of its graphs for further grids.
    """
    choice, graph = module.choice, module.graph
    if graph is None:
        stored = module.jobs[0].stored
        inputs: tuple[manifest.Tensor, ...] = (manifest.Tensor("input_ids", "int64", ("sequence",)),)
        outputs: tuple[manifest.Tensor, ...] = (manifest.Tensor("hidden", "float32", ("sequence", stored.columns)),)
    else:
        inputs, outputs = (describe_tensors(list(values)) for values in (graph.graph.inputs, graph.graph.outputs))
    return manifest.Module(
        name=choice.name,
        file=module.file,
        format="onnx" if graph else "rows",
        precision=choice.stated,
        parts=module.part_precisions if choice.parts else {},
        fp32_values=wide,
        placement=choice.placement,
        engine=choice.engine,
        dialect=choice.dialect if graph else None,
        inputs=inputs,
        outputs=outputs,
        max_relative_error=error,
        compiled=compiled,
        shapes=shapes,
    )
