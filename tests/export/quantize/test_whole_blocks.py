"""TensorRT takes blocks of one length alone; a row that is not whole in them is stored in INT8 a channel."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.engines import Dialect
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.graph.assemble import build, stack_of
from edgeglm.export.quantize.schemes import Int4, Int8
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import trace
from tests.export.emitting import emit
from tests.export.tiny import SHAPES, config_of, save


@pytest.mark.parametrize(("dialect", "ragged"), [("portable", Int8), ("ort", Int4)])
def test_a_row_that_is_not_whole_in_blocks(dialect: Dialect, ragged: type[Int4] | type[Int8], tmp_path: Path) -> None:
    shape = SHAPES["glm4v"]
    save(shape, tmp_path)
    traced = trace([TraceRequest(config_of(tmp_path), dialect, 128, shape.grid)])[0]
    graph = build(stack_of("vision", traced), dialect)
    stored, _ = emit(graph, dialect, Int4(), Checkpoint.open(tmp_path), "weights.bin")
    schemes = {weight.columns: type(weight.scheme) for weight in stored if weight.columns > 1}
    assert schemes[1176] is schemes[48] is ragged  # the patch embedding, and what reads 48 channels
    assert schemes[128] is schemes[192] is Int4
