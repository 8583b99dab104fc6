"""Ranges of a graph's values by ONNX Runtime's own tools, for engines whose INT8 those write."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator


def calibrated(graph: Path, operators: Collection[str], reader: CalibrationDataReader) -> TensorsData:
    """Return the least and the largest number of each value that these operators take or give."""
    augmented = graph.with_suffix(".augmented.onnx")
    calibrator = create_calibrator(graph, [*operators], augmented_model_path=str(augmented))
    calibrator.collect_data(reader)
    return calibrator.compute_data()
