"""INT8 of a user's own graph for an NPU: values of 8 bits, of 16 where they must be, floats where it has any.

An operator with an activation of 16 bits takes and gives only such, and its constants must be so too, but for weights
that are multiplied: those stay in INT8. Between operators of 8 and of 16 bits values are converted.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# ONNX Runtime's tools import it where it is installed, for what is not used here: three seconds of the processor.
sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgeglm.errors import UnsupportedError
from edgeglm.export.graph.violation import ANOTHER
from edgeglm.export.targets.base import Quantize, Quantizer
from edgeglm.export.targets.ranges import calibrated, write_quantized

if sys.modules["torch"] is None:
    del sys.modules["torch"]

# Where one of these stands, QNN leaves signed weights to the CPU.
WANT_UNSIGNED_WEIGHTS = {"LayerNormalization", "RMSNormalization", "Gelu"}
# Whose constants are weights. The first two may have a scale for each channel, if it is signed.
WEIGHED = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization", "RMSNormalization", "InstanceNormalization",
    "BatchNormalization", "GroupNormalization", "PRelu", "LSTM", "GRU",
}  # fmt: skip
# These give the codes that they take, or are computed with what is before them.
MOVING = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Gather", "Expand", "Tile",
    "MaxPool", "GlobalMaxPool", "DepthToSpace", "SpaceToDepth", "Resize", "Pad", "Relu", "Clip",
}  # fmt: skip
SIXTEEN, FLOAT = {"quant_type": QuantType.QUInt16}, onnx.TensorProto.FLOAT
FLOATING = "computed in floating point"
Overrides = dict[str, list[dict[str, Any]]]


def quantizer(graph: Path, reader: CalibrationDataReader, precision: str, *, floats: bool) -> Quantizer:
    """Calibrate once; what 8 bits ruin has 16, and is in floating point where the NPU computes that."""
    model = onnx.load(graph)
    _own_constants(model.graph)
    ranges = calibrated(graph, {node.op_type for node in model.graph.node}, reader)
    if not floats:
        _check_finite(onnx.shape_inference.infer_shapes(model).graph, ranges)
    nodes = [node.name for node in model.graph.node if any(name in ranges.data for name in node.output)]
    sixteen: Quantize = partial(_write, model, ranges)
    everywhere = nodes if precision == "a16w8" else []
    floating: Quantize = partial(_write_floating, model, ranges, everywhere)
    forms = {} if everywhere else {"activations of 16 bits": sixteen}
    return Quantizer(
        nodes if forms or floats else [], {**forms, **({FLOATING: floating} if floats or not forms else {})}
    )


def _check_finite(graph: onnx.GraphProto, ranges: TensorsData) -> None:
    """Raise UnsupportedError for the first node that gives what integers do not have, or no value at all."""
    empty = {value.name for value in (*graph.value_info, *graph.output) if _is_empty(value)}
    for node in graph.node:
        for name in node.output:
            if name in ranges.data and not np.isfinite([*ranges.data[name].range_value]).all():
                if name in empty:
                    why = "it gives a tensor without any value, and so without a range"
                    raise UnsupportedError(f"{node.name} ({node.op_type})", why, ANOTHER)
                why = "it gives NaN or infinity on the samples, and the NPU's integers have neither"
                remedy = "keep what it takes where it is defined, as by Max with a small number, or mend the samples"
                raise UnsupportedError(f"{node.name} ({node.op_type})", why, remedy)


def _is_empty(value: onnx.ValueInfoProto) -> bool:
    return any(dim.HasField("dim_value") and not dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _write(model: onnx.ModelProto, ranges: TensorsData, output: Path, wide: Collection[str]) -> None:
    _quantize(model, ranges, output, dict(_sixteen(model.graph, ranges, wide)), ())


def _write_floating(
    model: onnx.ModelProto, ranges: TensorsData, sixteen: Collection[str], output: Path, wide: Collection[str]
) -> None:
    _quantize(model, ranges, output, dict(_sixteen(model.graph, ranges, sixteen)), wide)


def _quantize(
    model: onnx.ModelProto, ranges: TensorsData, output: Path, overrides: Overrides, excluded: Collection[str]
) -> None:
    operators = {node.op_type for node in model.graph.node}
    weights = QuantType.QUInt8 if operators & WANT_UNSIGNED_WEIGHTS else QuantType.QInt8
    channels = weights is QuantType.QInt8
    if channels:
        for node in model.graph.node:
            if node.op_type == "Gemm":  # which QNN takes with one scale only
                overrides[node.input[1]] = [{"quant_type": weights, "symmetric": True}]
    config = get_qnn_qdq_config(
        model, None, weight_type=weights, per_channel=channels, init_overrides=overrides or None,
        nodes_to_exclude=[*excluded] or None,
    )  # fmt: skip

    def make(inferred: onnx.ModelProto) -> QDQQuantizer:
        types = config.weight_type, config.activation_type
        operators, options = config.op_types_to_quantize, config.extra_options
        return QDQQuantizer(inferred, channels, False, *types, ranges, [], [*excluded], operators, options)

    write_quantized(onnx.shape_inference.infer_shapes(model), make, output)


def _own_constants(graph: onnx.GraphProto) -> None:
    """Give each node constants of its own: one may have other codes in each operator."""
    constants, taken = {tensor.name: tensor for tensor in graph.initializer}, set[str]()
    for number, node in enumerate(graph.node):
        for index, name in enumerate(node.input):
            if name in constants and name in taken and constants[name].data_type == FLOAT:
                own = graph.initializer.add()
                own.CopyFrom(constants[name])
                own.name = f"{name}.{number}.{index}"
                node.input[index] = own.name
            taken.add(name)


def _sixteen(graph: onnx.GraphProto, ranges: TensorsData, wide: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the values that have 16 bits where these nodes take and give such."""
    nodes, constants = list(graph.node), {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
    values = set(_computed_wide(nodes, {*ranges.data} - constants, wide))
    for name in values:
        yield name, [dict(SIXTEEN)]
    for node in nodes:
        if node.op_type not in WEIGHED and values & {*node.input, *node.output}:
            yield from ((name, [dict(SIXTEEN)]) for name in node.input if name in constants)


def _computed_wide(nodes: Sequence[onnx.NodeProto], values: Collection[str], wide: Collection[str]) -> Iterator[str]:
    """Yield the values of these nodes, back to where each was computed."""
    makers = {name: node for node in nodes for name in node.output}
    waiting, seen = [name for node in nodes if node.name in wide for name in (*node.input, *node.output)], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in values or name in seen:
            continue
        seen.add(name)
        yield name
        maker = makers.get(name)
        if maker is not None and maker.op_type in MOVING:
            waiting += maker.input
