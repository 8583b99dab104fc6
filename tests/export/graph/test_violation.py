"""What is said of a node that is refused."""

from __future__ import annotations

from edgeglm.export.graph.violation import FIXED_LENGTH, WHOLE, Violation


def test_a_node_is_told_with_its_block_and_its_fix() -> None:
    found = Violation("n1", "layer", "Einsum", "the engine has no Einsum")
    assert str(found) == "layer: n1 (Einsum): the engine has no Einsum"
    assert str(found.fixed("a product")) == "layer: n1 (Einsum): the engine has no Einsum; fixed: a product"
    assert Violation("n1", WHOLE, "Einsum", "why").place == "n1 (Einsum)"


def test_one_length_in_the_place_of_many_is_no_fix() -> None:
    assert Violation("n1", WHOLE, "Loop", "why", FIXED_LENGTH).is_final
    assert not Violation("n1", WHOLE, "Loop", "why").is_final
