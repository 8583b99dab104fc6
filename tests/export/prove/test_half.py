"""The portable dialect in true fp16 arithmetic, each operator rounded, against fp32: with and without outlier channels.

ONNX Runtime's CPU provider computes fp16 graphs in fp32, where nothing overflows. The ONNX reference evaluator does as
a GPU does: it rounds after every operator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.graph.assemble import build, stack_of
from edgeglm.export.quantize.schemes import Fp16, Fp32
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import Traced, trace
from edgeglm.runtimes.inputs.positions import causal_mask
from tests.export.emitting import emit
from tests.export.tiny import SHAPES, config_of, save

LENGTH, PAST = 6, 5
HALF = onnx.TensorProto.FLOAT16


class Decoder:
    """A tiny decoder in one precision."""

    def __init__(self, folder: Path, traced: Traced, half: bool) -> None:
        model = build(stack_of("decoder", traced), "portable")
        name = "half" if half else "single"
        _, file = emit(model, "portable", Fp16() if half else Fp32(), Checkpoint.open(folder), f"{name}.bin")
        (folder / f"{name}.bin").write_bytes(file.data.tobytes())
        ir.save(model, folder / f"{name}.onnx")
        self.graph = onnx.load(folder / f"{name}.onnx")
        self.dtype = np.float16 if half else np.float32
        self.axes = 3 if traced.model.decoder.mrope_section else 1

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of the last of some tokens behind others, whose keys and values are as large as the model's own."""
        random = np.random.default_rng(2)
        feeds: dict[str, NDArray[Any]] = {}
        for value in self.graph.graph.input:
            dims = [dim.dim_value or PAST for dim in value.type.tensor_type.shape.dim]
            feeds[value.name] = random.normal(0, 1, dims).astype(self.dtype)
        feeds["hidden"] = hidden.astype(self.dtype)
        feeds["position_ids"] = np.broadcast_to(np.arange(PAST, PAST + LENGTH), (self.axes, 1, LENGTH))
        feeds["mask"] = causal_mask(LENGTH, PAST + LENGTH).astype(self.dtype)
        logits: Any = next(iter(ReferenceEvaluator(self.graph).run(["logits"], feeds)))
        assert logits.dtype == self.dtype
        result: NDArray[np.float32] = logits.astype(np.float32)
        return result


@pytest.fixture(scope="module", params=["glm4", "glm4v"])
def decoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Decoder]:
    folder, shape = tmp_path_factory.mktemp("model"), SHAPES[request.param]
    save(shape, folder)
    grid = shape.grid if shape.family == "glm4v" else None
    requests = [TraceRequest(config_of(folder), "portable", 128, grid, half=half) for half in (True, False)]
    half, single = trace(requests)
    return Decoder(folder, half, half=True), Decoder(folder, single, half=False)


def tokens(decoder: Decoder, outlier: float) -> NDArray[np.float32]:
    """Embeddings in which one channel is `outlier` times the others, as in large language models."""
    width = next(value for value in decoder.graph.graph.input if value.name == "hidden")
    hidden = np.random.default_rng(1).normal(0, 1, (1, LENGTH, width.type.tensor_type.shape.dim[2].dim_value))
    hidden[:, :, 3] *= outlier
    return hidden.astype(np.float32)


@pytest.mark.parametrize("outlier", [1, 1000])
def test_half_precision_survives_an_outlier_channel(decoders: tuple[Decoder, Decoder], outlier: float) -> None:
    half, single = decoders
    hidden = tokens(half, outlier)
    got, want = half.logits(hidden), single.logits(hidden)
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert error < 3e-3


def test_a_norm_in_half_precision_would_not(decoders: tuple[Decoder, Decoder]) -> None:
    """What the casts around each norm are for: without them, squares of an outlier are infinite."""
    half, single = decoders
    hidden = tokens(half, 1000)
    narrow = narrow_norms(half)
    want = single.logits(hidden)
    with np.errstate(all="ignore"):
        got = narrow.logits(hidden)
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert not error < 0.5


def narrow_norms(decoder: Decoder) -> Decoder:
    """The same with every norm in fp16: the cast before its square, and its epsilon."""
    copy = object.__new__(Decoder)
    copy.dtype, copy.axes, copy.graph = decoder.dtype, decoder.axes, onnx.ModelProto()
    copy.graph.CopyFrom(decoder.graph)
    nodes = copy.graph.graph.node
    squared = {node.input[0] for node in nodes if node.op_type == "Mul" and node.input[0] == node.input[1]}
    narrowed = 0
    for node in nodes:
        if node.op_type == "Cast" and node.output[0] in squared:
            node.attribute[0].i = HALF
            narrowed += 1
        if node.op_type == "Constant" and node.output[0].endswith(".epsilon"):
            array = onnx.numpy_helper.to_array(node.attribute[0].t).astype(np.float16)
            node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(array))
    assert narrowed >= 2
    return copy
