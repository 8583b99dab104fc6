"""A whole graph in another precision, by ONNX Runtime's own tools, in a process of its own.

``python -m edgeglm.export.graph_precision`` reads a `Task` on stdin. A process of its own, because these tools take a
multiple of the weights, keep it, and log to stderr.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgeglm.devices.profile import Engine
from edgeglm.errors import BudgetError, UnsupportedError

# What TensorRT fuses with its neighbours' steps.
TENSORRT_OPERATORS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
# Where one of these stands, QNN leaves signed weights to the CPU.
WANT_UNSIGNED_WEIGHTS = {"LayerNormalization", "RMSNormalization", "Gelu"}
# Sums that fp16 overflows stay in fp32.
WIDE = ["LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "Softmax"]


class Task(msgspec.Struct, frozen=True):
    """A graph to write to `output`, for INT8 by the samples in a folder, ``0.npz`` and so on, for an engine."""

    precision: Literal["fp16", "int8"]
    graph: str
    samples: str
    engine: Engine
    output: str


def convert(task: Task) -> None:
    """Write the graph in the other precision.

    Raises:
        BudgetError: The process was killed, most likely for its memory.
        UnsupportedError: The tool cannot do it.
    """
    command = [sys.executable, "-m", "edgeglm.export.graph_precision"]
    done = subprocess.run(command, input=msgspec.json.encode(task), capture_output=True, check=False)
    if done.returncode == -9:
        why = "the converter was killed, most likely because memory ran out"
        raise BudgetError(task.precision, why, "free memory, or export it in fp32")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise UnsupportedError(task.precision, f"ONNX Runtime cannot do it: {lines[-1]}", "export it in fp32")


class Samples:
    """The quantizer's reader: one sample after the other, none of them kept."""

    def __init__(self, folder: Path) -> None:
        self.files = iter(sorted(folder.glob("*.npz"), key=lambda path: int(path.stem)))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample, None after the last."""
        file = next(self.files, None)
        if file is None:
            return None
        with np.load(file) as archive:
            return {name: archive[name] for name in archive.files}


def _narrow(task: Task) -> None:
    from onnxruntime.transformers import float16

    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *WIDE]
    # Inputs and outputs keep their types, so that whoever feeds the original can feed it.
    onnx.save(
        float16.convert_float_to_float16(onnx.load(task.graph), keep_io_types=True, op_block_list=blocked), task.output
    )


def _quantize(task: Task) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize, quantize_static
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(Samples, CalibrationDataReader):  # type: ignore[misc]
        pass

    prepared, reader = Path(task.output).with_suffix(".prepared.onnx"), Reader(Path(task.samples))
    # Folds what is constant; for another engine the graph has the forms that it takes, and is left in them.
    quant_pre_process(task.graph, prepared, skip_symbolic_shape=True, skip_optimization=task.engine != "ort")
    if task.engine == "qnn":
        operators = {node.op_type for node in onnx.load(prepared, load_external_data=False).graph.node}
        weights = QuantType.QUInt8 if operators & WANT_UNSIGNED_WEIGHTS else QuantType.QInt8
        quantize(prepared, task.output, get_qnn_qdq_config(prepared, reader, weight_type=weights))
        return
    # TensorRT takes signed symmetric steps only, and no quantized bias.
    tensorrt = task.engine == "tensorrt"
    quantize_static(
        prepared,
        task.output,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=TENSORRT_OPERATORS if tensorrt else None,
        per_channel=True,
        activation_type=QuantType.QInt8 if tensorrt else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": tensorrt, "WeightSymmetric": True, "QuantizeBias": not tensorrt},
    )


if __name__ == "__main__":
    read = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    {"fp16": _narrow, "int8": _quantize}[read.precision](read)
