"""INT8 of a user's own graph for an NPU."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from edgeglm.export.targets.base import Quantize

# Where one of these stands, QNN leaves signed weights to the CPU.
WANT_UNSIGNED_WEIGHTS = {"LayerNormalization", "RMSNormalization", "Gelu"}
# An NPU computes integers only.
WIDE: tuple[str, ...] = ()


def quantizer(graph: Path, reader: CalibrationDataReader) -> Quantize:
    """Return what writes the graph in INT8, as ONNX Runtime's tools do for QNN."""
    operators = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    weights = QuantType.QUInt8 if operators & WANT_UNSIGNED_WEIGHTS else QuantType.QInt8

    def quantize(output: Path, wide: Collection[str]) -> None:
        quantization.quantize(graph, output, get_qnn_qdq_config(graph, reader, weight_type=weights))

    return quantize
