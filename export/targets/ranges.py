"""Ranges of a graph's values, and a graph in INT8, by ONNX Runtime's own tools, for engines that take its forms."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer


def calibrated(graph: Path, operators: Collection[str], reader: CalibrationDataReader) -> TensorsData:
    """Return the least and the largest number of each value that these operators take or give."""
    augmented = graph.with_suffix(".augmented.onnx")
    calibrator = create_calibrator(graph, [*operators], augmented_model_path=str(augmented))
    calibrator.collect_data(reader)
    return calibrator.compute_data()


def write_quantized(model: onnx.ModelProto, make: Callable[[onnx.ModelProto], QDQQuantizer], output: Path) -> None:
    """Write what a tool makes of a graph.

    Args:
        model: The graph, which is changed in place: inputs that are outputs too are put back behind the tool, which
            would make a cycle of each.
        make: The tool, which has not begun.
        output: The file.
    """
    outputs = onnx.GraphProto(output=model.graph.output)
    inputs = {value.name for value in model.graph.input}
    del model.graph.output[:]
    model.graph.output.extend(value for value in outputs.output if value.name not in inputs)
    made = make(model)
    made.quantize_model()
    written = made.model.model.graph
    kept = {value.name: value for value in (*outputs.output, *written.output)}
    del written.output[:]
    written.output.extend(kept[value.name] for value in outputs.output)
    made.model.save_model_to_file(str(output))
