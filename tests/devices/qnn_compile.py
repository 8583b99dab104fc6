"""Which ONNX operators QNN's compiler puts on the NPU: ONNX's own node tests, quantized or in float.

``python -m tests.devices.qnn_compile HTP_ARCH SOC_MODEL [OPERATOR ...]`` prints a line ``compiles NAME`` for each
operator of which a test compiles with nothing left for the CPU. It is quantized to INT8 for v68, which computes no
float, and in float for later ones.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime_qnn
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnxruntime.quantization import CalibrationDataReader, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

FLOATLESS = 68
TRIES = 3  # of an operator's tests, the smallest ones in fp32 first
# All their inputs are values; of other operators the first is, and the rest are parameters, which are constants.
ELEMENTWISE = set(
    "Add Sub Mul Div Pow Max Min Sum Mean Concat MatMul Where Equal Greater Less GreaterOrEqual LessOrEqual PRelu "
    "GridSample ScatterElements ScatterND".split()
)
Arrays = dict[str, NDArray[Any]]


def cases() -> dict[str, list[Any]]:
    """ONNX's tests of one node with tensors for inputs, by operator."""
    found: dict[str, list[Any]] = defaultdict(list)
    for case in collect_testcases(None):
        graph = case.model.graph if case.model else onnx.GraphProto()
        values = [*graph.input, *graph.output]
        if len(graph.node) != 1 or graph.node[0].domain or not all(v.type.HasField("tensor_type") for v in values):
            continue
        arrays = case.data_sets[0][0] if case.data_sets else []
        if arrays and all(isinstance(array, np.ndarray) and array.size for array in arrays):
            found[graph.node[0].op_type].append(case)
    for each in found.values():
        each.sort(key=lambda case: _rank(case.data_sets[0][0][0]))
    return found


def _rank(first: NDArray[Any]) -> tuple[bool, bool, int]:
    return first.dtype != np.float32, first.ndim not in (2, 3, 4), first.size


def compiles(case: Any, arch: int, soc: int, folder: Path) -> bool:  # noqa: ANN401
    """Whether the graph of a test compiles for the NPU alone."""
    path = folder / "model.onnx"
    arrays = write_graph(case, path)
    if arch == FLOATLESS and any(array.dtype == np.float32 for array in arrays.values()):
        path = folder / "quantized.onnx"
        quantize(folder / "model.onnx", path, get_qnn_qdq_config(folder / "model.onnx", Once(arrays)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for name, value in (
        ("session.disable_cpu_ep_fallback", "1"),
        ("ep.context_enable", "1"),
        ("ep.context_file_path", str(folder / "context.onnx")),
    ):
        options.add_session_config_entry(name, value)
    device = next(each for each in onnxruntime.get_ep_devices() if each.ep_name == "QNNExecutionProvider")
    backend = onnxruntime_qnn.get_qnn_htp_path()
    options.add_provider_for_devices([device], {"backend_path": backend, "soc_model": f"{soc}", "htp_arch": f"{arch}"})
    onnxruntime.InferenceSession(path, options)
    return True


def write_graph(case: Any, path: Path) -> Arrays:  # noqa: ANN401
    """Write a test's graph with its parameters as constants; returns what its inputs are fed."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph, every = model.graph, model.graph.node[0].op_type in ELEMENTWISE
    values: Arrays = {}
    for value, array in zip(list(graph.input), case.data_sets[0][0], strict=False):
        if not values or (every and array.dtype == np.float32):
            values[value.name] = array
        else:
            graph.initializer.append(numpy_helper.from_array(array, value.name))
            graph.input.remove(value)
    onnx.save(model, path)
    return values


class Once(CalibrationDataReader):  # type: ignore[misc]
    """One sample."""

    def __init__(self, arrays: Arrays) -> None:
        self.left = [arrays]

    def get_next(self) -> Arrays | None:
        return self.left.pop() if self.left else None


def compiled(arch: int, soc: int, names: Sequence[str]) -> Iterator[str]:
    """The operators of which a test compiles."""
    found = cases()
    for name in names or sorted(found):
        for case in found[name][:TRIES]:
            with TemporaryDirectory() as folder:
                try:
                    compiles(case, arch, soc, Path(folder))
                except Exception:  # a refusal has no type of its own
                    continue
                yield name
                break


if __name__ == "__main__":
    logging.disable()
    onnxruntime.set_default_logger_severity(4)
    onnxruntime.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
    for each in compiled(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]):
        print(f"compiles {each}", flush=True)
