"""INT8 of a user's own graph for ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


def quantize(graph: Path, output: Path, reader: CalibrationDataReader) -> None:
    """Write the graph in INT8: unsigned activations, signed weights a channel."""
    quantize_static(
        graph,
        output,
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "QuantizeBias": True},
    )
