"""INT8 of a user's own graph for TensorRT."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgeglm.export.targets.base import Quantize

# What TensorRT fuses with its neighbours' steps, and computes in fp32 as well.
WIDE: tuple[str, ...] = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# TensorRT takes signed symmetric steps only, and no quantized bias.
OPTIONS = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def quantizer(graph: Path, reader: CalibrationDataReader) -> Quantize:
    """Calibrate once, and return what writes the graph in INT8."""
    augmented = graph.with_suffix(".augmented.onnx")
    calibrator = create_calibrator(graph, [*WIDE], augmented_model_path=str(augmented))
    calibrator.collect_data(reader)
    ranges = calibrator.compute_data()

    def quantize(output: Path, wide: Collection[str]) -> None:
        types = QuantType.QInt8, QuantType.QInt8
        made = QDQQuantizer(onnx.load(graph), True, False, *types, ranges, [], [*wide], [*WIDE], OPTIONS)
        made.quantize_model()
        made.model.save_model_to_file(str(output))

    return quantize
