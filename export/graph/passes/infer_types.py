"""Types and shapes of all values, as far as ONNX's inference knows them: also of sequences, in graphs of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx_ir.convenience import create_value_mapping

# Larger tensors are left out of what is given to the inference, which reads small ones as shapes.
SMALL_BYTES = 1000


class InferTypes(ir.passes.InPlacePass):
    """Infer types and shapes; a node that the inference does not know keeps those that it has."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set what is inferred, where the inference does not fail as a whole."""
        with _without_weights(model.graph):
            proto = ir.to_proto(model)
        try:
            inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
        except Exception:  # of its own kinds, which have no common base
            return ir.passes.PassResult(model, False)
        modified = False
        for graph, other in zip(model.graphs(), inferred.graphs(), strict=False):
            known = create_value_mapping(other)
            for name, value in create_value_mapping(graph).items():
                modified |= name in known and _take(value, known[name])
        return ir.passes.PassResult(model, modified)


def _take(value: ir.Value, known: ir.Value) -> bool:
    """Take what another value knows; return whether that is new."""
    before = value.type, value.shape
    value.type = value.type if known.type is None else known.type
    value.shape = value.shape if known.shape is None else known.shape
    return before != (value.type, value.shape)


@contextmanager
def _without_weights(graph: ir.Graph) -> Iterator[None]:
    """Make inputs of large initializers, and of those without a value, for a while."""
    large = [
        value
        for value in graph.initializers.values()
        if value.const_value is None or value.const_value.nbytes > SMALL_BYTES
    ]
    inputs, initializers = list(graph.inputs), list(graph.initializers.items())
    for value in large:
        if value.const_value is not None:
            value.dtype = value.const_value.dtype
            value.shape = value.shape or ir.Shape(value.const_value.numpy().shape)
        del graph.initializers[f"{value.name}"]
        if not any(value is other for other in inputs):
            graph.inputs.append(value)
    try:
        yield
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        graph.initializers.clear()
        for _, value in initializers:
            graph.initializers.add(value)
