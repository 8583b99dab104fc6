"""The axes of outputs along which a convolution, a pool or a resize slides: places of an image, and no parts of it.

Columns of a table of boxes are judged apart where their ranges differ. Columns of a map of text are not: where there is
no text, all of a column is nearly nothing, and its neighbour is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx.inliner
from onnx import GraphProto, NodeProto, helper

# Their results have a batch, channels, and places behind them.
SLIDE = {
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GridSample", "InstanceNormalization",
    "LpPool", "LRN", "MaxPool", "SpaceToDepth",
}  # fmt: skip
# These change values in their places, or which places there are.
STAY = {
    "Abs", "Add", "Cast", "Ceil", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Pad", "Pow", "PRelu",
    "Reciprocal", "Relu", "Resize", "Round", "Selu", "Sigmoid", "Sign", "Slice", "Softplus", "Softsign", "Sqrt", "Sub",
    "Sum", "Swish", "Tanh", "ThresholdedRelu", "Upsample", "Where",
}  # fmt: skip
# And these along one axis, where it is no place any more.
ALONG = {"Concat": None, "LogSoftmax": -1, "Softmax": -1, "Split": None}
# So far behind the batch: axes of two dimensions and more.
FIRST = 2
Places = Mapping[str, frozenset[int]]


def places_of(original: Path) -> Places:
    """Return the axes of places of each output of a graph, by its name; outputs without any are left out."""
    proto = onnx.load(original, load_external_data=False)
    try:
        proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
        proto = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # the checker's own exceptions have no common base
        return {}
    return _Axes(proto.graph).of_outputs()


class _Axes:
    """The axes of places of the values of a graph."""

    def __init__(self, graph: GraphProto) -> None:
        values = (*graph.value_info, *graph.output, *graph.input)
        self._ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        self._graph = graph
        self._found: dict[str, frozenset[int]] = {}

    def of_outputs(self) -> dict[str, frozenset[int]]:
        """Return those of the outputs that have any."""
        for node in self._graph.node:
            self._found |= dict.fromkeys(node.output, self._behind(node))
        return {value.name: found for value in self._graph.output if (found := self._found.get(value.name))}

    def _behind(self, node: NodeProto) -> frozenset[int]:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        rank = self._ranks.get(node.output[0], 0)
        taken = [self._found[name] for name in node.input if self._found.get(name)]
        if node.domain not in ("", "ai.onnx"):
            return frozenset()
        if node.op_type in SLIDE:
            return frozenset(range(FIRST, rank))
        if not taken:
            return frozenset()
        if node.op_type == "Transpose":
            order = attributes.get("perm", [*range(rank)][::-1])
            return frozenset(index for index, axis in enumerate(order) if axis in taken[0])
        if node.op_type in ALONG:
            axis = attributes.get("axis", ALONG[node.op_type] or 0)
            return taken[0] - {axis % max(rank, 1)}
        return frozenset.intersection(*taken) if node.op_type in STAY and self._keeps_rank(node) else frozenset()

    def _keeps_rank(self, node: NodeProto) -> bool:
        ranks = {self._ranks.get(name) for name in node.input if self._found.get(name)}
        return ranks == {self._ranks.get(node.output[0])}
