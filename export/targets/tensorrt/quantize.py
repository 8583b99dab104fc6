"""INT8 of a user's own graph for TensorRT."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

# What TensorRT fuses with its neighbours' steps.
OPERATORS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def quantize(graph: Path, output: Path, reader: CalibrationDataReader) -> None:
    """Write the graph in INT8: TensorRT takes signed symmetric steps only, and no quantized bias."""
    quantize_static(
        graph,
        output,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
