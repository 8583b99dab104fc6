"""A module's graph, quantized and written as the exporter does it, with the file of weights in memory."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeglm.engines import Dialect
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.model import Stored
from edgeglm.export.quantize import stream
from edgeglm.export.quantize.graph import quantize_graph
from edgeglm.export.quantize.schemes import Scheme
from edgeglm.export.write.layout import bind, lay_out, write


class File:
    """An emitter's output in memory, which knows what was written twice or never."""

    def __init__(self, size: int) -> None:
        self.data = np.zeros(size, np.uint8)
        self.written = np.zeros(size, np.uint8)

    def pwrite(self, offset: int, data: memoryview) -> None:
        raw = np.frombuffer(data.tobytes(), np.uint8)
        self.data[offset : offset + len(raw)] = raw
        self.written[offset : offset + len(raw)] += 1


def emit(
    model: ir.Model, dialect: Dialect, scheme: Scheme, checkpoint: Checkpoint, location: str
) -> tuple[tuple[Stored, ...], File]:
    """Lower `model` in place to read its weights from the file `location`, and write that file."""
    stored = quantize_graph(model, dialect, lambda name: scheme)
    layout = lay_out(stored)
    bind(model, stored, layout, location)
    file = File(layout.nbytes)
    for weight, offsets in zip(stored, layout.offsets, strict=True):
        write(stream.pieces(weight, checkpoint, dialect), weight, offsets, file)
    return stored, file
