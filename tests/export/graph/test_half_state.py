"""Keys and values in half precision: they are read behind what writes them, and cost what half of the bytes costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeglm.export.graph.cache_order import check_cache_order
from edgeglm.export.graph.half_state import store_half
from edgeglm.export.graph.slots import SLOTS, with_slots
from edgeglm.export.prove.slots import largest_error
from edgeglm.runtimes.engines.ort.engine import Decoder
from edgeglm.runtimes.engines.ort.slots import SlotDecoder
from tests.export.test_oldest_engine import refused
from tests.runtimes.demo import demo_bundle

CAPACITY, STEPS = 256, (40, 1, 7, 1, 100, 1)
# Values of 11 bits instead of 24, in attention alone.
ROUNDED = 0.005


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's decoder in fp32 beside the same with keys and values in fp16, for one sequence and for several."""
    decoder = demo_bundle(tmp_path_factory.mktemp("half") / "bundle", "cpu", "fp32") / "decoder"
    model = ir.load(decoder / "model.onnx")
    store_half(model)
    slotted = with_slots(model, SLOTS)
    assert slotted
    for name, graph in (("half", model), ("half_slots", slotted)):
        (decoder / f"{name}.onnx").write_bytes(ir.to_proto(graph).SerializeToString())
    return decoder


@pytest.fixture
def half(folder: Path) -> Iterator[Decoder]:
    decoder = Decoder(folder / "half.onnx", 1, CAPACITY)
    yield decoder
    decoder.close()


def outputs(decoder: Decoder) -> list[NDArray[np.float32]]:
    """The logits of steps behind each other, over buffers of which no row is a number until it is written."""
    for buffer in decoder.state.tokens(0, CAPACITY):
        buffer[...] = np.nan
    return [feed(decoder, count) for count in STEPS]


def feed(decoder: Decoder, count: int) -> NDArray[np.float32]:
    inputs = decoder.inputs
    random = np.random.default_rng(decoder.length)
    hidden = random.standard_normal((1, count, inputs["hidden"][-1]), np.float32)
    positions = np.arange(decoder.length, decoder.length + count)
    return decoder.step(hidden, np.broadcast_to(positions, (inputs["position_ids"][0], 1, count)))


def test_a_step_reads_what_it_has_just_written_rounded(folder: Path, half: Decoder) -> None:
    exact = Decoder(folder / "model.onnx", 1, CAPACITY)
    errors = [
        float(np.linalg.norm(got - want) / np.linalg.norm(want))
        for got, want in zip(outputs(half), outputs(exact), strict=True)
    ]
    assert half.row_bytes * 2 == exact.row_bytes
    exact.close()
    assert min(errors) > 0
    assert max(errors) < ROUNDED


def test_rows_are_restored_bit_by_bit(folder: Path, half: Decoder) -> None:
    outputs(half)
    other = Decoder(folder / "half.onnx", 1, CAPACITY)
    other.write_rows(0, half.read_rows(0, half.length))
    np.testing.assert_array_equal(feed(other, 1), feed(half, 1))
    other.close()


def test_sequences_side_by_side_have_buffers_of_their_own(folder: Path, half: Decoder) -> None:
    several = SlotDecoder(folder / "half_slots.onnx", 1, SLOTS)
    assert largest_error(half, several) < ROUNDED
    several.close()


def test_the_oldest_engine_has_a_kernel_for_every_node(folder: Path) -> None:
    assert refused(folder / "half.onnx") == refused(folder / "half_slots.onnx") == []


def test_a_graph_without_the_edge_is_refused(folder: Path) -> None:
    model = ir.load(folder / "half.onnx")
    node: Any = next(node for node in model.graph if f"{node.name}" == "cache_value.1.filled")
    same = next(node for node in model.graph if node.op_type == "Constant" and f"{node.name}" == "half_state.same")
    node.replace_input_with(1, same.outputs[0])
    with pytest.raises(ValueError, match=r"may read cache_value\.1 before its new rows are written"):
        check_cache_order(model)
