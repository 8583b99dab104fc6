"""Trace, stamp, fuse, lower and write: fp32 graphs equal transformers' own forward on every shape that breaks ports."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.vision_utils import get_vision_position_ids

from edgeglm.engines import Dialect
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.graph.assemble import build, stack_of
from edgeglm.export.model import Model
from edgeglm.export.quantize.schemes import Fp32
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import Traced, trace
from edgeglm.runtimes.core.session import MAX_LAST
from edgeglm.runtimes.engines.ort.engine import Decoder
from edgeglm.runtimes.engines.ort.options import open_session
from tests.export.emitting import emit
from tests.export.tiny import SHAPES, Shape, config_of, save

CONTEXT = 128
LIMIT = 1e-5
DIALECTS: tuple[Dialect, ...] = ("ort", "portable")


@dataclass(frozen=True)
class Exported:
    """A tiny model and its fp32 graphs."""

    shape: Shape
    dialect: Dialect
    reference: PreTrainedModel
    model: Model
    decoder: Path
    vision: onnxruntime.InferenceSession | None


def write(model: ir.Model, dialect: Dialect, checkpoint: Checkpoint, path: Path) -> Path:
    _, file = emit(model, dialect, Fp32(), checkpoint, f"{path.stem}.bin")
    path.with_suffix(".bin").write_bytes(file.data.tobytes())
    ir.save(model, path)
    if dialect == "portable":
        onnx.checker.check_model(str(path), full_check=True)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    """A checkpoint of each shape."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: (folder / name, save(shape, folder / name)) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def traces(checkpoints: dict[str, tuple[Path, PreTrainedModel]]) -> dict[tuple[str, str], Traced]:
    """The traces of each shape in each dialect, all of one process: its start takes as long as a trace."""
    requests = {}
    for (name, shape), dialect in product(SHAPES.items(), DIALECTS):
        grid = shape.grid if shape.family == "glm4v" else None
        requests[name, dialect] = TraceRequest(config_of(checkpoints[name][0]), dialect, CONTEXT, grid)
    return dict(zip(requests, trace(list(requests.values())), strict=True))


@pytest.fixture(scope="module", params=list(product(SHAPES, DIALECTS)), ids=str)
def exported(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, tuple[Path, PreTrainedModel]],
    traces: dict[tuple[str, str], Traced],
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    name, dialect = request.param
    shape, folder = SHAPES[name], tmp_path_factory.mktemp("model")
    (source, reference), traced = checkpoints[name], traces[name, dialect]
    checkpoint = Checkpoint.open(source)
    decoder = write(build(stack_of("decoder", traced), dialect), dialect, checkpoint, folder / "d.onnx")
    vision = None
    if traced.model.vision:
        graph = build(stack_of("vision", traced), dialect)
        vision = open_session(write(graph, dialect, checkpoint, folder / "v.onnx"), 1)
    return Exported(shape, dialect, reference, traced.model, decoder, vision)


def error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Relative L2 error."""
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def positions(exported: Exported, start: int, length: int) -> Tensor:
    """(axes, 1, length); with M-RoPE three axes that differ."""
    token: Tensor = torch.arange(start, start + length)
    axes = [token, token // 3 + 5, token * 2 % 17] if exported.model.decoder.mrope_section else [token]
    stacked: Tensor = torch.stack(axes)
    return stacked[:, None]


@pytest.mark.parametrize("lengths", [(1, 1, 1), (7, 1, 3, 1), (64, 1, 5)], ids=str)
def test_decoder_equals_transformers(exported: Exported, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    reference: Any = exported.reference
    text = reference.model.language_model if exported.shape.family == "glm4v" else reference.model
    cache, decoder = DynamicCache(), Decoder(exported.decoder, 1, CONTEXT)
    for length in lengths:
        hidden = torch.randn(1, length, exported.shape.hidden)
        where = positions(exported, decoder.length, length)
        with torch.no_grad():
            position_ids = where if exported.model.decoder.mrope_section else where[0]
            output = text(inputs_embeds=hidden, position_ids=position_ids, past_key_values=cache, use_cache=True)
            last = min(3, length, decoder.max_last)
            want = reference.lm_head(output.last_hidden_state[0, -last:]).numpy()
        assert error(decoder.step(hidden.numpy(), where.numpy(), last), want) <= LIMIT
    assert decoder.max_last == (MAX_LAST if exported.dialect == "ort" else 1)


def test_vision_equals_transformers(exported: Exported) -> None:
    if exported.vision is None:
        assert exported.shape.family != "glm4v"
        return
    torch.manual_seed(2)
    tower: Any = exported.reference.model.visual
    rows, columns = exported.shape.grid
    grid = torch.tensor([[1, rows, columns]])
    pixels = torch.randn(rows * columns, 3 * 2 * 14 * 14)
    where = get_vision_position_ids(grid, 2)
    with torch.no_grad():
        want = tower(pixels, grid).pooler_output.numpy()
        nothing = torch.zeros(rows * columns, 48)
        position = tower.embeddings(nothing, [rows * columns], grid, where[:, 0], where[:, 1]).numpy()
    (got,) = exported.vision.run(None, {"pixel_values": pixels.numpy(), "position": position})
    assert error(got, want) <= LIMIT
