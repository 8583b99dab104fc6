"""A user's graph in one form: dense constants, known domains, and no shapes but those that are so.

Exporters write sizes of -1 or 0 for what varies, declare shapes that their graphs do not compute, and give one value as
two outputs. ONNX Runtime runs all of that; what reads the graph here need not know it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
)
from onnx_ir.traversal import RecursiveGraphIterator

from edgeglm.export.foreign.normalize.identities import pass_identities
from edgeglm.export.graph.passes.infer_types import InferTypes

# From this version on, an initializer need not be an input too.
IR_VERSION = 8
ONNX = ("", "ai.onnx")
FIRST = ".first_condition"
QUANTIZED = {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QGemm", "QMoE"}
# Attributes without which ONNX's inference takes another value than their default, and errs in shapes.
DEFAULTS = {"STFT": ("onesided", 1)}
PARTS = ("QuantizeLinear", "DequantizeLinear", "QLinear", "DynamicQuantize", "BlockQuantized")


def tidy_proto(proto: ModelProto) -> bool:
    """Bring a file's content into one form, in place; return whether ONNX Runtime would take other inputs than before.

    A size below 0 varies, as does one of 0 of an input. Declared shapes are dropped where inference knows better. An
    output that is maps from classes to scores becomes the tensor of scores, with a column a class.
    """
    for opset in proto.opset_import:
        opset.domain = "" if opset.domain in ONNX else opset.domain
    bodies = [*_graphs(proto.graph)]
    for graph in bodies:
        _tidy_graph(graph)
    for node in _nodes(proto):
        _tidy_node(node)
    _once(proto.graph)
    changed = bool(_without_maps(proto.graph))
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                changed |= dim.dim_value == 0
                dim.Clear()
    return changed


def quantized_by(proto: ModelProto) -> tuple[str, ...]:
    """Return the operators by which a graph computes with, or stores, integers in the place of its numbers."""
    names = {node.op_type for node in _nodes(proto)}
    return tuple(sorted(name for name in names if name in QUANTIZED or any(part in name for part in PARTS)))


def bytes_of_weights(proto: ModelProto) -> int:
    """Return the bytes of all weights: constants in nodes and weights of bodies and functions too."""
    initializers = (tensor for graph in _graphs(proto.graph) for tensor in graph.initializer)
    constants = (attribute.t for node in _nodes(proto) for attribute in node.attribute if attribute.HasField("t"))
    return sum(tensor.ByteSize() for tensors in (initializers, constants) for tensor in tensors)


def load_model(proto: ModelProto, shapes: Mapping[str, Sequence[int | str]]) -> ir.Model:
    """Return a tidy graph without functions and constant nodes, with inferred shapes.

    Args:
        proto: As `tidy_proto` leaves it.
        shapes: Of its inputs, by name.
    """
    model = ir.from_proto(proto)
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    InlinePass()(model)
    RemoveInitializersFromInputsPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ClearMetadataAndDocStringPass()(model)
    _pass_dropouts(model)
    _give_conditions(model)
    pass_identities(model)
    name_nodes(model)
    for value in model.graph.inputs:
        if (name := f"{value.name}") in shapes:
            value.shape = ir.Shape(shapes[name])
    InferTypes()(model)
    return model


def _pass_dropouts(model: ir.Model) -> None:
    """Let a Dropout that does nothing be an Identity: only in training does it drop, and no engine here trains."""
    for node in RecursiveGraphIterator(model.graph):
        if (node.domain, node.op_type) != ("", "Dropout"):
            continue
        training = node.inputs[2] if len(node.inputs) > 2 else None
        trains = training is not None and (training.const_value is None or bool(training.const_value.numpy()))
        if not trains and not any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            node.op_type = "Identity"
            node.resize_inputs(1)
            node.resize_outputs(1)
            node.attributes.clear()


def _give_conditions(model: ir.Model) -> None:
    """Let a Loop without a first condition have one that is true, which TensorRT asks for."""
    for node in list(RecursiveGraphIterator(model.graph)):
        if (node.domain, node.op_type) == ("", "Loop") and node.inputs[1] is None:
            name = f"{node.outputs[0].name}{FIRST}"
            condition = ir.Value(name=name, const_value=ir.tensor(np.array(True), name=name))
            condition.dtype, condition.shape = ir.DataType.BOOL, ir.Shape([])
            model.graph.register_initializer(condition)
            node.replace_input_with(1, condition)


def name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own in the whole model, those in bodies too, and every value one in its graph.

    A node without a name has that of its first result, by which a user finds it.
    """
    for node in RecursiveGraphIterator(model.graph):
        node.name = node.name or next((f"{value.name}" for value in node.outputs if value.name), None)
    NameFixPass()(model)
    taken = set[str]()
    for node in RecursiveGraphIterator(model.graph):
        name, count = f"{node.name}", 1
        while node.name in taken:
            node.name, count = f"{name}.{count}", count + 1
        taken.add(f"{node.name}")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(body)


def _nodes(proto: ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(proto.graph):
        yield from graph.node
    for function in proto.functions:
        for opset in function.opset_import:
            opset.domain = "" if opset.domain in ONNX else opset.domain
        for node in function.node:
            yield node
            for attribute in node.attribute:
                for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    for graph in _graphs(body):
                        yield from graph.node


def _tidy_graph(graph: GraphProto) -> None:
    dense = [_dense(sparse) for sparse in graph.sparse_initializer]
    del graph.sparse_initializer[:]
    graph.initializer.extend(dense)
    # What other domains' operators compute, no inference here knows.
    known = {name for node in graph.node if node.domain in ONNX for name in node.output}
    kept = [value for value in graph.value_info if value.name not in known]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for value in (*graph.value_info, *graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.Clear()
    for value in graph.output:
        if value.name in known and value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _tidy_node(node: NodeProto) -> None:
    node.domain = "" if node.domain in ONNX else node.domain
    name, default = DEFAULTS.get(node.op_type, ("", 0)) if not node.domain else ("", 0)
    if name and all(attribute.name != name for attribute in node.attribute):
        node.attribute.append(onnx.helper.make_attribute(name, default))
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor") and node.op_type == "Constant":
            tensor = _dense(attribute.sparse_tensor)
            attribute.Clear()
            attribute.name, attribute.type = "value", AttributeProto.TENSOR
            attribute.t.CopyFrom(tensor)


def _once(graph: GraphProto) -> None:
    """Drop what is an output for the second time."""
    outputs = {value.name: value for value in reversed(graph.output)}
    kept = [value for value in graph.output if outputs.pop(value.name, None) is not None]
    if len(kept) < len(graph.output):
        del graph.output[:]
        graph.output.extend(kept)


def maps_of(graph: GraphProto) -> list[str]:
    """Return the outputs that are maps from classes to scores, as exporters of scikit-learn's models write them."""
    makers = {name: node for node in graph.node for name in node.output}
    taken = {name for node in graph.node for name in node.input}
    zipped = {name for name, node in makers.items() if node.op_type == "ZipMap"} - taken
    return [value.name for value in graph.output if value.name in zipped]


def _without_maps(graph: GraphProto) -> list[str]:
    """Let scores be outputs in the place of the maps that are made of them; returns their names."""
    names = maps_of(graph)
    for node in graph.node:
        if node.output[0] in names:
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    for value in graph.output:
        if value.name in names:
            value.type.Clear()
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return names


def _dense(sparse: SparseTensorProto) -> TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(array, sparse.values.name)
