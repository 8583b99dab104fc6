"""Small real inputs of all users of the store: a product in each engine's format, and traces."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from onnx import helper

from tests.runtimes.engines.tensorrt.graphs import SINGLE, graph, matmul, write_bundle

FILES = {"ort": "decoder/single.onnx", "litert": "decoder/model.tflite"}
TRACES = "traces"
SIZE = 64


class Inputs(NamedTuple):
    """The inputs of all users: a bundle's folder, and what the tracing process and a measurement gave."""

    bundle: Path
    traces: dict[str, bytes]


def write_inputs(folder: Path, traces: dict[str, bytes], factor: float = 1.0) -> Inputs:
    """Write a bundle of one product, and the same in ONNX Runtime's and LiteRT's formats."""
    write_bundle(folder, matmul(factor))
    weights = np.float32(factor) * np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    single = graph([node], [("x", SINGLE, [1, SIZE])], [("y", SINGLE, [1, SIZE])], w=weights)
    (folder / FILES["ort"]).write_bytes(single)
    (folder / FILES["litert"]).write_bytes(tflite(weights))
    (folder / TRACES).write_bytes(msgspec.msgpack.encode(traces))
    return Inputs(folder, traces)


def tflite(weights: np.ndarray[Any, Any]) -> bytes:
    """Return a TFLite file of one product, whose weights XNNPACK packs."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    model, part = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs = 3, [part]
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(weights.tobytes(), np.uint8)
    code, product = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version, model.operatorCodes = 1, [code]
    part.tensors = []
    for name, shape, buffer in (("x", [1, SIZE], 0), ("w", [SIZE, SIZE], 1), ("y", [1, SIZE], 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, shape, buffer, schema.TensorType.FLOAT32
        part.tensors.append(tensor)
    product.inputs, product.outputs = [0, 1, -1], [2]
    product.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    product.builtinOptions = schema.FullyConnectedOptionsT()
    part.operators, part.inputs, part.outputs = [product], [0], [2]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "encode", 0
    signature.inputs, signature.outputs = [schema.TensorMapT()], [schema.TensorMapT()]
    signature.inputs[0].name, signature.inputs[0].tensorIndex = "x", 0
    signature.outputs[0].name, signature.outputs[0].tensorIndex = "y", 2
    model.signatureDefs = [signature]
    builder = importlib.import_module("flatbuffers").Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
