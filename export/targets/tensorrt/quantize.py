"""INT8 of a user's own graph for TensorRT."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgeglm.export.targets.base import Quantizer
from edgeglm.export.targets.ranges import calibrated, write_quantized

# What TensorRT fuses with its neighbours' steps, and computes in fp32 as well.
WIDE: tuple[str, ...] = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# TensorRT takes signed symmetric steps only, and no quantized bias.
OPTIONS = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def quantizer(graph: Path, reader: CalibrationDataReader, precision: str, *, floats: bool) -> Quantizer:
    """Calibrate once; what INT8 ruins is computed in fp32, as TensorRT always can."""
    ranges = calibrated(graph, WIDE, reader)
    nodes = [node.name for node in onnx.load(graph, load_external_data=False).graph.node if node.op_type in WIDE]

    def quantize(output: Path, wide: Collection[str]) -> None:
        def make(model: onnx.ModelProto) -> QDQQuantizer:
            types = QuantType.QInt8, QuantType.QInt8
            return QDQQuantizer(model, True, False, *types, ranges, [], [*wide], [*WIDE], OPTIONS)

        write_quantized(onnx.load(graph), make, output)

    return Quantizer(nodes, {"computed in fp32": quantize})
