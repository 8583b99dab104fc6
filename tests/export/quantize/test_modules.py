"""A module through every scheme: lowered, laid out, streamed and run by the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.tensor import Tensor
from edgeglm.export.graph.assemble import build, check_weights, stack_of
from edgeglm.export.model import Stored
from edgeglm.export.quantize import stream
from edgeglm.export.quantize.schemes import SCHEMES, Scheme
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import Traced, trace
from edgeglm.runtimes.engines.ort.engine import Decoder
from tests.export.emitting import File, emit
from tests.export.tiny import SHAPES, save

SHAPE = SHAPES["glm4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("glm4")
    save(SHAPE, folder)
    return Checkpoint.open(folder)


def traced(checkpoint: Checkpoint) -> Traced:
    return trace([TraceRequest(checkpoint.config_json, "ort", 64)])[0]


def export(checkpoint: Checkpoint, scheme: Scheme) -> tuple[ir.Model, tuple[Stored, ...], File]:
    module = traced(checkpoint)
    model = build(stack_of("decoder", module), "ort")
    stored, file = emit(model, "ort", scheme, checkpoint, "weights.bin")
    return model, stored, file


def logits(model: ir.Model, file: File, folder: Path) -> NDArray[np.float32]:
    (folder / "weights.bin").write_bytes(file.data.tobytes())
    ir.save(model, folder / "model.onnx")
    hidden = np.random.default_rng(0).standard_normal((1, 9, SHAPE.hidden), np.float32)
    return Decoder(folder / "model.onnx", 1, 64).step(hidden, np.arange(9)[None, None])


# Relative error of the logits on random weights, where nothing averages out: what a broken kernel would exceed.
# int8-static has nothing to scale its activations by here; tests/export/calibrate/test_calibration.py runs it.
LIMITS = {"fp32": 1e-6, "fp16": 1e-3, "int8": 0.05, "int8-block": 0.05, "int4": 0.5, "int4-128": 0.5}


@pytest.mark.parametrize("name", LIMITS)
def test_every_scheme_runs_within_its_error(checkpoint: Checkpoint, name: str, tmp_path: Path) -> None:
    exact_model, _, exact_file = export(checkpoint, SCHEMES["fp32"])
    (tmp_path / "exact").mkdir()
    exact = logits(exact_model, exact_file, tmp_path / "exact")
    model, stored, file = export(checkpoint, SCHEMES[name])
    got = logits(model, file, tmp_path)
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert error <= LIMITS[name]
    assert sum(part.nbytes for weight in stored for part in weight.parts) == np.count_nonzero(file.written)


def test_every_byte_is_written_once_whatever_the_chunks(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, whole = export(checkpoint, SCHEMES["int4"])
    monkeypatch.setattr(stream, "CHUNK_BYTES", 4096)
    _, _, chunked = export(checkpoint, SCHEMES["int4"])
    assert chunked.written.max() == 1
    assert np.array_equal(whole.data, chunked.data)


def test_the_block_is_fused(checkpoint: Checkpoint) -> None:
    """One projection for queries, keys and values; residual and norm in one; no reshape between."""
    model, _, _ = export(checkpoint, SCHEMES["int4"])
    layer = [node.op_type for node in model.graph if (node.name or "").startswith("layer.1.")]
    expected = {"RotaryEmbedding": 1, "FusedMatMul": 2, "Reshape": 6, "Split": 3, "Concat": 0, "QuickGelu": 1, "Add": 1}
    assert {name: layer.count(name) for name in expected} == expected
    products = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert len(products) == 4 * SHAPE.layers + 1


def test_a_checkpoint_that_contradicts_its_config_is_damaged(checkpoint: Checkpoint) -> None:
    _, stored, _ = export(checkpoint, SCHEMES["fp32"])
    check_weights(stored, checkpoint)
    name = "model.layers.2.mlp.down_proj.weight"
    lost = {key: value for key, value in checkpoint.tensors.items() if key != name}
    with pytest.raises(DamagedFileError, match=f"{name}: is missing"):
        check_weights(stored, replace(checkpoint, tensors=lost))
    for shape in ((96, 161), (95, 160)):
        found = checkpoint.tensors[name]
        assert isinstance(found, Tensor)
        tensor = replace(found, shape=shape)
        with pytest.raises(DamagedFileError, match=name):
            check_weights(stored, replace(checkpoint, tensors=lost | {name: tensor}))
