"""Operators that ONNX itself writes by others, as those: Mish(x) -> x tanh(softplus(x)), ReduceL2, Selu, Softsign."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, LiftConstantsToInitializersPass, NameFixPass

from edgeglm.export.graph.passes.infer_types import InferTypes

# In which most of them have such a form; ReduceL2 of older ones has none.
OPSET = 18


def decompose_functions(model: ir.Model, known: Collection[str]) -> ir.Model | None:
    """Return a graph with ONNX's definition of operators in the places of these.

    Args:
        model: Its weights must be there.
        known: The operators that the engine has, which stay.
    """
    used = {node.op_type for node in model.graph if node.domain in ("", "ai.onnx")}
    lacking = [("", name) for name in sorted(used - {*known})]
    try:
        given = ir.to_proto(model)
        _give_defaults(given, used - {*known})
        proto = onnx.inliner.inline_selected_functions(given, lacking, inline_schema_functions=True)
    except Exception:  # the library's own exceptions have no common base
        return None
    if {node.op_type for node in proto.graph.node if not node.domain} >= used:
        return None
    made = ir.from_proto(proto)
    _name_nodes(model, made)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(made)
    InferTypes()(made)
    _cast(made)
    for tidying in (IdentityEliminationPass(), NameFixPass()):
        tidying(made)
    return made


def _give_defaults(model: onnx.ModelProto, operators: Collection[str]) -> None:
    """Give nodes the attributes that their operators have by default, which the library does not put into a body."""
    opset = next(imported.version for imported in model.opset_import if not imported.domain)
    for node in model.graph.node:
        if node.op_type in operators and not node.domain:
            defaults = onnx.defs.get_schema(node.op_type, opset).attributes.values()
            there = {attribute.name for attribute in node.attribute}
            node.attribute.extend(
                one.default_value for one in defaults if one.default_value.name and one.name not in there
            )


def _name_nodes(model: ir.Model, made: ir.Model) -> None:
    """Name each node of a definition after the node in whose place it is: the last of them has its result."""
    names = {value.name: node.name for node in model.graph for value in node.outputs}
    name = ""
    for node in reversed(made.graph):
        name = next((f"{names[value.name]}" for value in node.outputs if value.name in names), name)
        node.name = node.name or f"{name}.{node.op_type}"


def _cast(model: ir.Model) -> None:
    """Replace casts to another value's type, of which no engine knows, and those that change nothing."""
    for node in list(model.graph):
        taken = node.inputs[0] if node.inputs else None
        if node.op_type == "CastLike":
            like = node.inputs[1]
            dtype = None if like is None else like.dtype
        else:
            dtype = ir.DataType(node.attributes.get_int("to", 0)) if node.op_type == "Cast" else None
        if taken is None or dtype is None:
            continue
        tape = ir.tape.Tape()
        operator, attributes = ("Identity", {}) if taken.dtype == dtype else ("Cast", {"to": int(dtype)})
        cast = tape.op(operator, [taken], attributes, name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], tape.nodes, node.outputs, [cast])
