"""Fold what constants alone make, for an engine that computes no node without a value."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from edgeglm.engines import DIALECTS, ENGINES, EngineName

# Bytes of what is computed here at most: slices of weights, as torch's exporter makes of an LSTM's, are larger than
# what the library folds by itself.
LARGEST = 1 << 28


def fold(model: ir.Model, engine: EngineName) -> None:
    """Fold constants in place, if the engine is an NPU; others do so when they load a graph."""
    if DIALECTS[ENGINES[engine].dialect].integers:
        fold_constants(model, input_size_limit=LARGEST, output_size_limit=LARGEST, should_fold=_is_filled)
        RemoveUnusedNodesPass()(model)


def _is_filled(node: ir.Node) -> bool | None:
    """Tell the library to fold a tensor of one number too, as pads and masks of exporters begin with; else None."""
    return True if node.op_type == "ConstantOfShape" else None
