"""A whole graph in another precision: fp16, INT8 or INT4; INT8 for other engines by ONNX Runtime's own tools.

They take a multiple of the weights, keep it, and log to stderr, so a worker runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.engines import DIALECTS, ENGINES, EngineName
from edgeglm.errors import UnsupportedError
from edgeglm.export.foreign.plan.graph_plan import Precision
from edgeglm.export.foreign.read.made import Made, samples_of
from edgeglm.export.targets.base import quantize_step
from edgeglm.runtimes.core.heap import bound_heap
from edgeglm.worker import Crashed, Worker, serve

CONVERTER = Worker("edgeglm.export.foreign.graph_precision", Made, "the converter", "free memory, or export it in fp32")


class Task(msgspec.Struct, frozen=True):
    """A graph to write to `output` for an engine.

    Args:
        original: The user's file.
        samples: For INT8, a folder of samples to calibrate on, ``0.npz`` and so on.
        held: A folder of samples to measure on.
        limit: The error at which the graph fails.
        floats: Whether the accelerator computes in floating point too.
        pairs: Whether kernels of the device may add pairs of products in 16 bits, as those of x86 do.
    """

    precision: Precision
    graph: str
    samples: str
    engine: EngineName
    output: str
    original: str
    held: str
    limit: float
    floats: bool
    pairs: bool


def convert(task: Task, show: Callable[[float], None] = lambda done: None) -> Made:
    """Write the graph in the other precision; returns what was chosen and measured on the way, and shows how far it is.

    Raises:
        BudgetError: The process was killed, most likely for its memory.
        UnsupportedError: The tool cannot do it.
    """
    try:
        return CONVERTER.run(task, task.precision, show)
    except Crashed as error:
        remedy = (
            "export it in fp32" if task.floats else "take out of the model what that names, or choose another --target"
        )
        raise UnsupportedError(task.precision, f"ONNX Runtime cannot do it: {error}", remedy) from error


class Samples:
    """The quantizer's reader: one sample after the other, none of them kept."""

    def __init__(self, folder: Path) -> None:
        self.samples = samples_of(folder)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample, None after the last."""
        return next(self.samples, None)


def _narrow(task: Task) -> Made:
    from edgeglm.export.foreign.fp16.half import to_half
    from edgeglm.export.foreign.fp16.half_nodes import make_half

    if ENGINES[task.engine].half:
        graph, original, held, output = map(Path, (task.graph, task.original, task.held, task.output))
        return make_half(graph, original, held, output, task.limit)
    model = ir.load(task.graph)
    to_half(model)
    ir.save(model, task.output)
    return Made()


def _quantize(task: Task, show: Callable[[float], None]) -> Made:
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(Samples, CalibrationDataReader):  # type: ignore[misc]
        pass

    prepared = Path(task.output).with_suffix(".prepared.onnx")
    # Folds what is constant; for another engine the graph has the forms that it takes, and is left in them.
    ours = DIALECTS[ENGINES[task.engine].dialect].contrib
    quant_pre_process(task.graph, prepared, skip_symbolic_shape=True, skip_optimization=not ours)
    from edgeglm.export.foreign.quantize.int8 import make_integers, widen

    if ours:
        return make_integers(prepared, task, show)
    reader = Reader(Path(task.samples))
    quantizer = quantize_step(task.engine).quantizer(prepared, reader, task.precision, floats=task.floats)
    return widen(prepared, quantizer, task, show)


def make(task: Task, show: Callable[[float], None] = lambda done: None) -> Made:
    """Convert in this process."""
    return _narrow(task) if task.precision == "fp16" else _quantize(task, show)


def main() -> int:
    """Run the worker."""
    bound_heap()
    return serve(Task, make)
