"""Run a trace in ONNX Runtime, with narrow random weights where its placeholders ask for weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime import OrtValue

from edgeglm.errors import UnsupportedError
from edgeglm.export.model import rotary_order
from edgeglm.export.trace.narrow import factors, values
from edgeglm.runtimes.engines.ort.options import session_options

Arrays = Mapping[str, NDArray[Any]]
# Of placeholders, and the operators that stand for them.
DOMAIN = "edgeglm"
NORMS = {"RMSNorm": "SimplifiedLayerNormalization", "LayerNorm": "LayerNormalization"}
# A severity of ONNX Runtime's log.
FATAL = 4
LINEAR = ("MatMul", "MatMul", "Add")


class Executable:
    """A trace that can be run, in fp32 whatever it is traced in.

    Args:
        part: What an error calls it.
        trace: A serialized ONNX model with placeholders.
        full_name: From a placeholder's name for a layer to the checkpoint's.
        sizes: Numbers of patches that stand for others, of a graph whose shapes are fixed.
    """

    def __init__(
        self, part: str, trace: bytes, full_name: Callable[[str], str], sizes: Mapping[int, int] | None = None
    ) -> None:
        model = onnx.load_model_from_string(trace)
        _widen(model.graph)
        _resize(model.graph, sizes or {})
        _put_in(model.graph, full_name)
        self.outputs = [value.name for value in model.graph.output]
        self.inputs = [value.name for value in model.graph.input]
        data = model.SerializeToString()
        del model
        options = session_options(data, 1)
        options.enable_cpu_mem_arena = False
        options.log_severity_level = FATAL  # of an error, what is raised says all
        self.part = part
        with self._explained():
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, values: Arrays, places: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Return the outputs by name.

        Args:
            values: What it takes, and more.
            places: Where outputs are to be written, by their names: arrays that may be parts of its inputs.

        Raises:
            UnsupportedError: It does not run.
        """
        with self._explained():
            binding = self._session.io_binding()
            inputs = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values[name])) for name in self.inputs}
            outputs = {name: OrtValue.ortvalue_from_numpy(place) for name, place in (places or {}).items()}
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                if name in outputs:
                    binding.bind_ortvalue_output(name, outputs[name])
                else:
                    binding.bind_output(name)
            self._session.run_with_iobinding(binding)
            return dict(zip(self.outputs, binding.copy_outputs_to_cpu(), strict=True))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the engine, whose errors have no common base, into one that names the part."""
        try:
            yield
        except Exception as error:
            raise refusal(self.part, f"does not run: {error}") from error


def refusal(part: str, why: str) -> UnsupportedError:
    """Return the error that names a part whose trace is no use."""
    return UnsupportedError(
        part, f"the traced graph {why}", "its bundle would be wrong: report the model's config.json"
    )


def _widen(graph: GraphProto) -> None:
    """Turn half precision into fp32."""
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    constants = [
        attribute.t for node in graph.node for attribute in node.attribute if attribute.type == attribute.TENSOR
    ]
    for tensor in (*graph.initializer, *constants):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for cast in (node for node in graph.node if node.op_type == "Cast"):
        for to in cast.attribute:
            if to.name == "to" and to.i == TensorProto.FLOAT16:
                to.i = TensorProto.FLOAT


def _resize(graph: GraphProto, sizes: Mapping[int, int]) -> None:
    """Have a fixed graph take another number of patches: it stands first in every shape that has it."""
    graph.ClearField("value_info")
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for dimension in (value.type.tensor_type.shape.dim[0] for value in graph.input):
        if dimension.dim_value in sizes:
            dimension.dim_value = sizes[dimension.dim_value]
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"} if sizes else set()
    for tensor in (tensor for tensor in graph.initializer if tensor.name in shapes):
        shape = numpy_helper.to_array(tensor).tolist()
        place = next((place for place, size in enumerate(shape) if size in sizes), None)
        if place is not None and -1 not in shape[:place]:  # which would stand for the number of patches
            shape[place] = sizes[shape[place]]
            tensor.CopyFrom(numpy_helper.from_array(np.array(shape), tensor.name))


def _put_in(graph: GraphProto, full_name: Callable[[str], str]) -> None:
    """Put operators with weights in the place of the placeholders."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        name = full_name(settings["weights"][0].decode())
        arrays = _linear(name, settings) if node.op_type == "Linear" else _norm(name, node.op_type, settings["size"])
        names = [f"{node.output[0]}.{number}" for number in range(len(arrays))]
        graph.initializer.extend(map(numpy_helper.from_array, arrays, names))
        nodes += _operators(node, names, settings)
    graph.ClearField("node")
    graph.node.extend(nodes)


def _linear(name: str, settings: Mapping[str, Any]) -> list[NDArray[Any]]:
    """Both factors of a matrix, as MatMul takes them, and its bias; rows in the order that the placeholder asks for."""
    rows, order = settings["rows"], np.arange(settings["rows"])
    if settings["split_rotary"]:
        heads = order.reshape(-1, settings["head_dim"])
        order = heads[:, rotary_order(settings["split_rotary"], settings["head_dim"])].ravel()
    left, right = factors(f"{name}.weight", rows, settings["columns"])
    bias = [values(f"{name}.bias", [rows])[order]] if settings["bias"] else []
    return [np.ascontiguousarray(right.T), np.ascontiguousarray(left[order].T), *bias]


def _norm(name: str, operator: str, size: int) -> list[NDArray[Any]]:
    keys = ("weight", "bias") if operator == "LayerNorm" else ("weight",)
    return [values(f"{name}.{key}", [size]) for key in keys]


def _operators(node: NodeProto, names: list[str], settings: Mapping[str, Any]) -> Iterator[NodeProto]:
    """Yield what a placeholder stands for, from its input to its output."""
    (value,), (output,) = node.input, node.output
    if node.op_type in NORMS:
        yield helper.make_node(NORMS[node.op_type], [value, *names], [output], epsilon=settings["epsilon"])
        return
    outputs = [*(f"{name}.out" for name in names[:-1]), output]
    for operator, name, result in zip(LINEAR, names, outputs, strict=False):
        yield helper.make_node(operator, [value, name], [result])
        value = result
