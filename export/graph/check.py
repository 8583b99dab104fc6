"""Check a graph against what the engine supports and the device allows, before anything of it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.devices.operator_table import Operator, Table
from edgeglm.devices.profile import Limits
from edgeglm.export.graph.violation import FIXED_LENGTH, SAMPLED_LENGTH, WHOLE, Violation

# How a stamped graph begins the names of a part's nodes and values.
PART = re.compile(r"(front|back|layer\.\d+)\.")
# Of scikit-learn's models: ONNX's too, with opsets of its own.
ML = "ai.onnx.ml"
FUSED_ATTENTION = {"Attention", "GroupQueryAttention", "MultiHeadAttention"}
# What may stand between attention's two products and its softmax.
BETWEEN = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Reshape", "Identity", "Transpose", "Dropout", "Clip", "Max"}
REACH = 8
EXPORT_AGAIN = "export it again in one of these"
FIXED_SIZES = "export it with fixed sizes, or give samples of one size by --calibration"


def check(model: ir.Model, table: Table, limits: Limits | None = None) -> list[Violation]:
    """Return every violation of a graph, in the order of computation.

    Args:
        model: A rank or a type that the graph does not know is not looked at.
        table: The engine's operators.
        limits: The device's, where the engine is the one that they speak of.
    """
    found = list(_graph_violations(model, table, limits))
    opsets = model.graph.opset_imports
    blocks = _blocks(model.graph)
    for node in RecursiveGraphIterator(model.graph):
        place = _name(node), blocks.get(node, WHOLE), operator_name(node)
        found += [Violation(*place, reason) for reason in _reasons(node, table, opsets)]
        found += [Violation(*place, *reason) for reason in _limit_reasons(node, limits)]
    return found


def operator_name(node: ir.Node) -> str:
    """Return the operator's name in the tables."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _graph_violations(model: ir.Model, table: Table, limits: Limits | None) -> Iterator[Violation]:
    opset = model.graph.opset_imports.get("", 0)
    if table.opset and opset and not table.opset.value[0] <= opset <= table.opset.value[1]:
        oldest, newest = table.opset.value
        yield Violation("opset", WHOLE, str(opset), f"{table.title} reads opsets {oldest} to {newest}", EXPORT_AGAIN)
    if limits and not limits.dynamic_shapes.value:
        for value in model.graph.inputs:
            sizes = ["rank"] if value.shape is None else value.shape  # of a scalar, none
            if dynamic := [str(size) for size in sizes if not isinstance(size, int)]:
                why = f"it has dimensions that vary, {', '.join(dynamic)}, and the device takes static shapes only"
                yield Violation(f"{value.name}", WHOLE, "input", why, FIXED_SIZES)


def _reasons(node: ir.Node, table: Table, opsets: Mapping[str, int]) -> Iterator[str]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = opsets.get(domain, 0)
    operator = table.operators.get(operator_name(node))
    if operator is None:
        yield f"{table.title} does not have the operator"
        return
    if operator.versions and (version := _version(node, opset)):
        oldest, newest = operator.versions
        if not oldest <= version <= newest:
            yield f"{table.title} has its versions {oldest} to {newest}, and opset {opset} means {version}"
    yield from _tensor_reasons(node, operator, table)
    yield from _form_reasons(node, operator, table)


def _tensor_reasons(node: ir.Node, operator: Operator, table: Table) -> Iterator[str]:
    first = node.inputs[0] if node.inputs else None
    if operator.dtypes and first is not None and first.dtype is not None and _dtype(first) not in operator.dtypes:
        yield f"{table.title} takes {', '.join(operator.dtypes)}, and its input is {_dtype(first)}"
    limits = [limit for limit in (operator.max_rank, table.max_rank and table.max_rank.value) if limit]
    ranks = [len(value.shape) for value in (*node.inputs, *node.outputs) if value is not None and value.shape]
    if limits and ranks and max(ranks) > min(limits):
        yield f"{table.title} takes at most {min(limits)} dimensions here, and it has {max(ranks)}"


def _form_reasons(node: ir.Node, operator: Operator, table: Table) -> Iterator[str]:
    for word, most, values in (("inputs", operator.inputs, node.inputs), ("outputs", operator.outputs, node.outputs)):
        used = max((index for index, value in enumerate(values, 1) if value is not None and value.name), default=0)
        if most and used > most:
            yield f"{table.title} takes its first {most} {word} only"
    for index in operator.constant:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and not _is_constant(value):
            yield f"{table.title} takes its input {index} as a constant only"
    for name, wanted in operator.attributes.items():
        found = node.attributes.get(name)
        if found is not None and found.value != wanted:
            yield f"{table.title} takes {name} {wanted} only, and it is {found.value}"


def _limit_reasons(node: ir.Node, limits: Limits | None) -> Iterator[tuple[str, str]]:
    """Yield reasons and remedies; a length that is a dimension of an input is fixed by samples."""
    if limits is None:
        return
    if node.op_type == "LSTM" and not limits.variable_length_lstm.value:
        why = "it takes sequences of different lengths, which the device cannot (limits.variable_length_lstm)"
        if _takes_lengths(node):
            yield why, FIXED_LENGTH
        elif _is_sampled(node):
            yield why, SAMPLED_LENGTH
    if not limits.dynamic_attention.value and _is_attention(node) and _is_dynamic(node):
        yield "the length of its attention varies, which the device cannot (limits.dynamic_attention)", SAMPLED_LENGTH


def _takes_lengths(lstm: ir.Node) -> bool:
    lengths = lstm.inputs[4] if len(lstm.inputs) > 4 else None
    return lengths is not None and not _is_constant(lengths)


def _is_sampled(lstm: ir.Node) -> bool:
    """Return whether the sequence's dimension (0, or 1 with layout 1) is not fixed."""
    x, axis = lstm.inputs[0], lstm.attributes.get_int("layout", 0)
    return x is not None and x.shape is not None and not isinstance(x.shape[axis], int)


def _is_attention(node: ir.Node) -> bool:
    """Return a fused operator, or a softmax between two products of values."""
    if node.op_type in FUSED_ATTENTION:
        return True
    if node.op_type != "Softmax":
        return False
    return _reaches_product(node, forward=False) and _reaches_product(node, forward=True)


def _reaches_product(softmax: ir.Node, *, forward: bool) -> bool:
    nodes = [softmax]
    for _ in range(REACH):
        nodes = [other for node in nodes for other in (node.successors() if forward else node.predecessors())]
        if any(_is_product(node) for node in nodes):
            return True
        nodes = [node for node in dict.fromkeys(nodes) if node.op_type in BETWEEN]
    return False


def _is_product(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Einsum", "Gemm"):
        return False
    return not any(value is not None and _is_constant(value) for value in node.inputs[:2])


def _is_dynamic(node: ir.Node) -> bool:
    """Return whether one of the last two dimensions, of queries and of keys, is not a number."""
    fused = node.op_type in FUSED_ATTENTION
    values = [value for value in (node.inputs[:3] if fused else node.outputs) if value is not None]
    return any(
        value.shape is None or any(not isinstance(size, int) for size in value.shape[1 if fused else -2 :])
        for value in values
    )


def _blocks(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return the part of each node; a node whose names do not tell belongs to the part that uses it."""
    blocks, last = {}, WHOLE
    for node in reversed(graph):
        names = (node.name, *(value.name for value in node.outputs))
        last = next((match[1] for name in names if name and (match := PART.match(name))), last)
        blocks[node] = last
    return blocks


def _name(node: ir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), None) or "a node without a name"


def _version(node: ir.Node, opset: int) -> int | None:
    """Return the opset in which this version of an ONNX operator appeared."""
    if node.domain not in ("", "ai.onnx", ML):
        return None
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, ML if node.domain == ML else "").since_version)
    except onnx.defs.SchemaError:
        return None  # an engine's own, in ONNX's domain


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(value.dtype.name, value.dtype.name.lower())


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.const_value is not None or value.is_initializer() or (
        producer is not None and producer.op_type in ("Constant", "DequantizeLinear") and all(
            value is None or _is_constant(value) for value in producer.inputs
        )
    )  # fmt: skip
