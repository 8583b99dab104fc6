"""A decoder's graph for several sequences: what is shared, what is there for each, and where there is none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from edgeglm.export.graph.slots import SLOTS, with_slots
from tests.runtimes.demo import demo_bundle


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("exact") / "bundle", "cpu", "fp32")


@pytest.fixture(scope="module")
def decoder(exact: Path) -> ir.Model:
    return ir.load(exact / "decoder/model.onnx")


def test_products_are_there_once_and_attention_once_a_slot(decoder: ir.Model) -> None:
    before, slotted = Counter(node.op_type for node in decoder.graph), with_slots(decoder, 3)
    assert slotted
    after = Counter(node.op_type for node in slotted.graph)
    assert after["MatMul"] == before["MatMul"]
    assert after["FusedMatMul"] == 3 * before["FusedMatMul"]
    assert after["Softmax"] == 3 * before["Softmax"]
    assert slotted.graph.initializers.keys() == decoder.graph.initializers.keys()


def test_sizes_of_slots_have_names_of_their_own(decoder: ir.Model) -> None:
    slotted = with_slots(decoder, SLOTS)
    assert slotted
    shapes = {str(value.name): value.shape for value in slotted.graph.inputs}
    assert shapes["cache_key.0.slot0"][0] != shapes["cache_key.0.slot1"][0]  # type: ignore[index]


def test_rows_that_share_a_scale_have_no_slots(decoder: ir.Model) -> None:
    shared = decoder.clone()
    node = next(node for node in shared.graph if node.op_type == "MatMul" and not f"{node.name}".startswith("front"))
    node.op_type, node.domain = "DynamicQuantizeMatMul", "com.microsoft"
    assert with_slots(shared, 2) is None


def test_a_decoder_without_a_cache_has_no_slots(decoder: ir.Model) -> None:
    graph = decoder.clone().graph
    for value in [*graph.inputs]:
        value.name = f"{value.name}".replace("cache_", "past_")
    assert with_slots(ir.Model(graph, ir_version=10), 2) is None
