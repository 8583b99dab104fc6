"""Types that operators take and give, by the schemas of ONNX and of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

HALF = "tensor(float16)"


@dataclass(frozen=True)
class Operand:
    """An operand of an operator: the name of its type, which operands share, and the types that this may be."""

    kind: str
    types: frozenset[str]
    repeats: bool

    @property
    def may_be_half(self) -> bool:
        """Whether it may be fp16."""
        return HALF in self.types


@dataclass(frozen=True)
class Operands:
    """The operands of an operator; those of a variadic one have the last one's."""

    inputs: Sequence[Operand]
    outputs: Sequence[Operand]

    def input(self, index: int) -> Operand | None:
        """Return an input's, or None where the operator has no such input."""
        return _at(self.inputs, index)

    def output(self, index: int) -> Operand | None:
        """Return an output's, or None where the operator has no such output."""
        return _at(self.outputs, index)


def operands_of(node: ir.Node, opsets: dict[str, int]) -> Operands | None:
    """Return the operands of a node's operator, None of an operator that nobody here knows."""
    return _operands(node.domain, node.op_type, opsets.get(node.domain, 1))


def complete_types(graph: ir.Graph, opsets: dict[str, int]) -> None:
    """Give a type to outputs that ONNX's inference does not know: the one of the operand that must have the same."""
    for node in graph:
        operands = operands_of(node, opsets)
        for index, value in enumerate(node.outputs):
            wanted = operands.output(index) if operands and value.type is None else None
            if wanted and (dtype := _shared(node, operands, wanted)):
                value.type = ir.TensorType(dtype)
        for attribute in node.attributes.values():
            for body in bodies(attribute):
                complete_types(body, opsets)


def bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """Return the graphs of an attribute."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _shared(node: ir.Node, operands: Operands | None, wanted: Operand) -> ir.DataType | None:
    for index, value in enumerate(node.inputs):
        operand = operands.input(index) if operands else None
        if value is not None and operand and operand.kind == wanted.kind and isinstance(value.type, ir.TensorType):
            return value.dtype
    return _NAMED.get(next(iter(wanted.types))) if len(wanted.types) == 1 else None


_NAMED = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(uint8)": ir.DataType.UINT8,
    "tensor(int8)": ir.DataType.INT8,
}


def _at(operands: Sequence[Operand], index: int) -> Operand | None:
    if index < len(operands):
        return operands[index]
    return operands[-1] if operands and operands[-1].repeats else None


@cache
def _operands(domain: str, operator: str, opset: int) -> Operands | None:
    schema = _schema(domain, operator, opset)
    if schema is None:
        return None
    types = {
        constraint.type_param_str: frozenset(constraint.allowed_type_strs) for constraint in schema.type_constraints
    }
    return Operands(*([_operand(operand, types) for operand in side] for side in (schema.inputs, schema.outputs)))


def _operand(parameter: Any, types: dict[str, frozenset[str]]) -> Operand:  # noqa: ANN401
    name = getattr(parameter, "type_str", None) or parameter.typeStr
    return Operand(name, types.get(name, frozenset([name])), "Variadic" in str(parameter.option))


def _schema(domain: str, operator: str, opset: int) -> Any | None:  # noqa: ANN401
    if not domain:
        try:
            return onnx.defs.get_schema(operator, opset, domain)
        except onnx.defs.SchemaError:
            return None
    versions = [schema for schema in _schemas().get((domain, operator), []) if schema.since_version <= opset]
    return max(versions, key=lambda schema: schema.since_version, default=None)


@cache
def _schemas() -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for schema in get_all_operator_schema():
        found.setdefault((schema.domain, schema.name), []).append(schema)
    return found
