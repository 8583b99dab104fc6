"""Find the rows of a matrix that make the values of an attention, from what comes out of it: a pattern of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

# What moves channels of a value, and changes none.
MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Concat", "Slice")


@dataclass(frozen=True)
class ValueHeads:
    """Rows `start` to `stop` of a Linear that are the values of heads of so many channels, one head after the other."""

    linear: ir.Node
    start: int
    stop: int
    size: int


def find_heads(node: ir.Node) -> ValueHeads | None:
    """Return the value heads whose mixture by a softmax a node reshapes; None where it does anything else."""
    product = _producer(node.outputs[0], ("Reshape", "Transpose"))
    if product is None or product.op_type != "MatMul":
        return None
    shares, mixed = product.inputs
    softmax = _producer(shares, ("Reshape",))
    if softmax is None or softmax.op_type != "Softmax" or mixed is None or mixed.shape is None or len(mixed.shape) != 4:
        return None
    heads, size = mixed.shape[1], mixed.shape[3]
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    return _rows(mixed, heads, size)


def _rows(value: ir.Value | None, heads: int, size: int) -> ValueHeads | None:
    """Go back to the Linear that makes values; all that lies between must have no other reader."""
    third, readers = None, 1
    while value is not None and (node := value.producer()) is not None and len(value.uses()) == readers:
        readers = 1
        if node.op_type == "Linear":
            count, start = node.attributes["rows"].as_int(), (third or 0) * heads * size
            is_whole = count == heads * size * (1 if third is None else 3)
            is_plain = (
                not node.attributes["split_rotary"].as_int() and len(node.attributes["weights"].as_strings()) == 1
            )
            return ValueHeads(node, start, start + heads * size, size) if is_whole and is_plain else None
        if node.op_type == "Slice":
            third, readers = _third(node, heads, size), 3
        if node.op_type not in MOVES or (node.op_type == "Slice" and third is None):
            return None
        value = node.inputs[-1] if node.op_type == "Concat" else node.inputs[0]
    return None


def _third(node: ir.Node, heads: int, size: int) -> int | None:
    """Return which of queries, keys and values, [3, n, heads, size], a Slice takes; None where it is none of them."""
    whole = node.inputs[0]
    moved = whole.producer() if whole is not None else None
    if whole is None or whole.shape is None or moved is None or moved.op_type != "Transpose":
        return None
    starts = {_first(use.node.inputs[1]) for use in whole.uses() if use.node.op_type == "Slice"}
    is_first = tuple(moved.attributes["perm"].as_ints()[:2]) == (1, 0) and _first(node.inputs[3]) == 0
    shape = tuple(whole.shape)
    is_cut = is_first and starts == {0, 1, 2} and shape[0] == 3 and shape[2:] == (heads, size)
    return _first(node.inputs[1]) if is_cut else None


def _first(value: ir.Value | None) -> int | None:
    """Return the one number of a constant."""
    constant = value.const_value if value is not None else None
    numbers = [] if constant is None else constant.numpy().reshape(-1).tolist()
    return int(numbers[0]) if len(numbers) == 1 else None


def _producer(value: ir.Value | None, skipped: tuple[str, ...]) -> ir.Node | None:
    """Return the node that makes a value, before nodes that only move it; None where something else reads it."""
    while value is not None and (node := value.producer()) is not None:
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
        if node.op_type not in skipped:
            return node
        value = node.inputs[0]
    return None
