"""Read an ONNX file of the user's, with distrust: whole, valid, and with all of its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass, NameFixPass, ShapeInferencePass

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.files import open_regular, opened, read_bytes
from edgeglm.units import format_size

SUFFIX = ".onnx"
# A protocol buffer holds no more.
MAX_BYTES = (2 << 30) - (1 << 20)
# What an input may be.
TYPES = {ir.DataType[name] for name in ("FLOAT", "FLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL")}


@dataclass(frozen=True)
class Input:
    """An input of a user's graph; a dimension that varies is a text."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Source:
    """A graph as it was read: whole, valid ONNX, with its weights."""

    file: Path
    proto: onnx.ModelProto
    inputs: tuple[Input, ...]
    sha256: str
    weights_bytes: int

    @property
    def varying(self) -> list[str]:
        """The inputs of which a dimension varies."""
        return [each.name for each in self.inputs if any(isinstance(size, str) for size in each.shape)]


def read_graph(file: Path) -> Source:
    """Return a graph with its weights.

    Raises:
        UsageError: There is no such file, or it is no ONNX.
        DamagedFileError: It is cut off, not valid, or its weights are not all there.
        UnsupportedError: An input has no shape, or a type that no engine here is fed.
    """
    with opened(file, f"give a {SUFFIX} file", MAX_BYTES) as stream:
        # The first field of every ONNX file is the version of its format.
        if stream.read(1) != b"\x08":
            raise UsageError(file, "is not an ONNX file", f"give a {SUFFIX} file, or a checkpoint's folder")
        data = b"\x08" + stream.read(MAX_BYTES)
    try:
        proto = onnx.load_from_string(data)
        _check_external(file, proto)
        load_external_data_for_model(proto, str(file.parent))
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        # An operator that ONNX does not know is for the check to list.
        if "No Op registered" not in str(error):
            why = f"its weights are not there: {error}" if isinstance(error, OSError) else _first_line(error)
            raise DamagedFileError(file, why, "export it again, with its external data beside it") from error
    except Exception as error:
        raise DamagedFileError(file, "is cut off or damaged", "copy it again") from error
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weights > MAX_BYTES:
        why = f"has {format_size(weights)} of weights, and a graph is read whole, up to 2GiB"
        raise UnsupportedError(file, why, "export it as a checkpoint, which is read in pieces")
    return Source(file, proto, _inputs(file, proto), hashlib.sha256(data).hexdigest(), weights)


def _check_external(file: Path, proto: onnx.ModelProto) -> None:
    """Check that what lies beside a graph as its weights is in regular files, before any is read.

    Raises:
        OSError: It is not.
    """
    names = {entry.value for tensor in _tensors(proto) for entry in tensor.external_data if entry.key == "location"}
    total = sum((file.parent / name).stat().st_size for name in names)
    for name in names:
        open_regular(file.parent / name).close()
    if total > MAX_BYTES:
        raise OSError(f"{format_size(total)} are beside it, and up to {format_size(MAX_BYTES)} are read")


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in proto.graph.initializer if tensor.external_data]


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return f"is not valid ONNX: {text[0]}"


def load_model(source: Source) -> ir.Model:
    """Return the graph without functions, in known shapes."""
    model = ir.from_proto(source.proto)
    for each in (InlinePass(), ClearMetadataAndDocStringPass(), NameFixPass()):
        each(model)
    for value, known in zip(model.graph.inputs, source.inputs, strict=False):
        value.shape = ir.Shape(known.shape)
    ShapeInferencePass()(model)
    return model


def graph_bytes(file: Path) -> int:
    """Return the bytes of a graph and the files of its weights; `read_graph` reports a missing one."""
    try:
        proto = onnx.load_from_string(read_bytes(file, "", MAX_BYTES))
        total = file.stat().st_size
    except Exception:
        return 0
    for tensor in proto.graph.initializer:
        total += sum(int(entry.value) for entry in tensor.external_data if entry.key == "length")
    return total


def _inputs(file: Path, proto: onnx.ModelProto) -> tuple[Input, ...]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    found = []
    for value in proto.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        dtype = ir.DataType(kind.elem_type) if value.type.HasField("tensor_type") else ir.DataType.UNDEFINED
        if dtype not in TYPES or not kind.HasField("shape"):
            why = f"its input {value.name} has no shape, or is {dtype}"
            allowed = ", ".join(sorted(dtype.name.lower() for dtype in TYPES))
            raise UnsupportedError(file, why, f"export it with inputs of {allowed}, with their shapes")
        sizes = (
            int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or f"{value.name}.{axis}"
            for axis, dim in enumerate(kind.shape.dim)
        )
        found.append(Input(value.name, np.dtype(dtype.numpy()), tuple(sizes)))
    return tuple(found)


def weights_sha256(proto: onnx.ModelProto) -> str:
    """Hash every initializer, sorted by name."""
    digest = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda each: each.name):
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        digest.update(f"{tensor.name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
