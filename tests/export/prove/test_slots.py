"""The proof of a decoder for several sequences."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from edgeglm.bundle import load_bundle
from edgeglm.export.graph.slots import SLOTS, with_slots
from edgeglm.export.prepare.module import serialize
from edgeglm.export.prove.slots import largest_error
from edgeglm.runtimes.engines.ort.engine import Decoder
from edgeglm.runtimes.engines.ort.slots import SlotDecoder
from tests.runtimes.demo import demo_bundle


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("exact") / "bundle", "cpu", "fp32")


def test_its_error_is_in_the_manifest(exact: Path) -> None:
    slots = load_bundle(exact).decoder.slots
    assert slots
    assert slots.count == SLOTS
    assert slots.max_relative_error is not None
    assert slots.max_relative_error <= 1e-5


@pytest.mark.parametrize("fault", ["none", "rows of another slot"])
def test_a_sequence_that_gets_the_rows_of_another_is_an_error(exact: Path, fault: str) -> None:
    folder = exact / "decoder"
    model = with_slots(ir.load(folder / "model.onnx"), SLOTS)
    assert model
    if fault != "none":
        node = next(node for node in model.graph if node.op_type == "Concat" and f"{node.name}".startswith("layer.1."))
        first, second = node.inputs[:2]
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
    one = Decoder(folder / "model.onnx", 1, 1)
    several = SlotDecoder(folder / "slots.onnx", 1, SLOTS, graph=serialize(model))
    assert (largest_error(one, several) > 1e-5) == (fault != "none")
