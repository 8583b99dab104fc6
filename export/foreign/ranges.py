"""Ranges of activations: what flows through a graph on the calibration samples, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edgeglm.export.calibrate.histogram import Histogram
from edgeglm.runtimes.engines.ort.options import session_options

# Values that are asked for in one run: they are in memory together.
TOGETHER = 32


def observe(
    model: ir.Model, names: Sequence[str], samples: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, Histogram]:
    """Return a histogram of each value, by name; a value that is never finite, or no float, has none."""
    proto = ir.to_proto(model)
    there = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    graph = proto.SerializeToString()
    session = onnxruntime.InferenceSession(graph, session_options(graph), providers=["CPUExecutionProvider"])
    histograms: dict[str, Histogram] = {}
    inputs = [name for name in names if name in {value.name for value in session.get_inputs()}]
    computed = [name for name in names if name not in inputs]
    for sample in samples:
        for name in inputs:
            _add(histograms, name, sample[name])
        for start in range(0, len(computed), TOGETHER):
            wanted = computed[start : start + TOGETHER]
            for name, array in zip(wanted, session.run(wanted, dict(sample)), strict=True):
                _add(histograms, name, array)
    return histograms


def _add(histograms: dict[str, Histogram], name: str, array: NDArray[Any]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        return
    finite = array[np.isfinite(array)]
    if finite.size:
        histograms.setdefault(name, Histogram()).add(finite)
