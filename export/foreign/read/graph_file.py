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

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.files import POINTER, refuse_pointer
from edgeglm.export.foreign.normalize.tidy import bytes_of_weights, maps_of, quantized_by, tidy_proto
from edgeglm.export.prove.onnx_run import check_loads
from edgeglm.export.write.describe import DTYPES
from edgeglm.files import open_regular, opened, read_bytes
from edgeglm.units import format_size

SUFFIX = ".onnx"
# A protocol buffer holds no more.
MAX_BYTES = (2 << 30) - (1 << 20)
# Larger weights of a graph that is written again are in a file beside it.
INLINE_BYTES = 1 << 20
KINDS = {
    "sequence_type": "a sequence",
    "map_type": "a map",
    "optional_type": "an optional value",
    "sparse_tensor_type": "a sparse tensor",
}
HARMLESS = ("No Op registered", "Field 'shape' of 'type' is required")
REMEDIES = {
    "ZipMap": "export it without ZipMap (zipmap=False)", "SplitToSequence": "give its parts by Split",
    "TreeEnsembleClassifier": "export it with whole numbers as classes",
    "LinearClassifier": "export it with whole numbers as classes",
    "SVMClassifier": "export it with whole numbers as classes",
}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """An input of a user's graph; a dimension that varies is a text, and a shape that nobody knows None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Source:
    """A graph as it was read: whole, tidy ONNX, with its weights.

    Args:
        file: The user's file.
        original: What ONNX Runtime runs as the original: the same file, or one that says the same.
        integers: The operators by which it is quantized already.
        maps: Outputs that are maps in the file, and tensors here.
    """

    file: Path
    original: Path
    proto: onnx.ModelProto
    inputs: tuple[Input, ...]
    sha256: str
    weights_bytes: int
    integers: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """The shapes of the inputs that have one."""
        return {value.name: value.shape for value in self.inputs if value.shape is not None}

    @property
    def varying(self) -> list[str]:
        """The inputs of which a dimension varies."""
        return [
            value.name
            for value in self.inputs
            if value.shape is None or any(isinstance(size, str) for size in value.shape)
        ]


def read_graph(file: Path, work: Path) -> Source:
    """Return a graph with its weights.

    Args:
        file: The user's.
        work: A folder for what ONNX Runtime runs in its place, if it must.

    Raises:
        UsageError: There is no such file, or it is no ONNX.
        DamagedFileError: It is cut off, not valid, or its weights are not all there.
        UnsupportedError: An input or an output has a type that no engine here is fed.
    """
    data = _read_bytes(file)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        proto = onnx.load_from_string(data)
        if not proto.graph.node and not proto.graph.output:
            raise ValueError("no graph")
    except Exception as error:
        raise DamagedFileError(file, "is cut off or damaged", "copy it again") from error
    del data  # the checks copy what they read, too
    try:
        _check_external(file, proto)
        load_external_data_for_model(proto, str(file.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        why = f"its weights are not there: {_first_line(error)}"
        raise DamagedFileError(file, why, "export it again, with its external data beside it") from error
    weights = bytes_of_weights(proto)
    if weights > MAX_BYTES:
        why = f"has {format_size(weights)} of weights, and a graph is read whole, up to 2GiB"
        raise UnsupportedError(file, why, "export it as a checkpoint, which is read in pieces")
    fault, maps = _fault(proto), maps_of(proto.graph)
    original = work / "original.onnx" if tidy_proto(proto) else file
    if original != file:
        onnx.save(proto, original, save_as_external_data=weights > INLINE_BYTES, location="original.bin")
    if fault and not _runs(original):
        raise DamagedFileError(file, f"is not valid ONNX: {fault}", "export it again, with its external data beside it")
    _check_outputs(file, proto)
    return Source(file, original, proto, _inputs(file, proto), sha256, weights, quantized_by(proto), tuple(maps))


def _read_bytes(file: Path) -> bytes:
    with opened(file, f"give a {SUFFIX} file", MAX_BYTES) as stream:
        start = stream.read(len(POINTER))
        refuse_pointer(file, start)
        # The first field of every ONNX file is the version of its format.
        if start[:1] != b"\x08":
            raise UsageError(file, "is not an ONNX file", f"give a {SUFFIX} file, or a checkpoint's folder")
        stream.seek(0)
        return stream.read(MAX_BYTES + 1)


def _fault(proto: onnx.ModelProto) -> str | None:
    """Return what ONNX's checker says against a graph; ONNX Runtime may still run it."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        # An operator that ONNX does not know is for the check to list, and a shape that an output lacks is inferred.
        return None if any(harmless in str(error) for harmless in HARMLESS) else _first_line(error)
    except ValueError:  # larger than a protocol buffer: its files are not checked
        return None
    return None


def _runs(file: Path) -> bool:
    try:
        check_loads(file)
    except Exception:  # the engine's own exceptions have no common base
        return False
    return True


def _check_external(file: Path, proto: onnx.ModelProto) -> None:
    """Check that what lies beside a graph as its weights is in regular files, before any is read.

    Raises:
        OSError: It is not.
        DamagedFileError: Git LFS has not fetched it.
    """
    names = {entry.value for tensor in _tensors(proto) for entry in tensor.external_data if entry.key == "location"}
    total = sum((file.parent / name).stat().st_size for name in names)
    for name in names:
        with open_regular(file.parent / name) as stream:
            refuse_pointer(file.parent / name, stream.read(len(POINTER)))
    if total > MAX_BYTES:
        raise OSError(f"{format_size(total)} are beside it, and up to {format_size(MAX_BYTES)} are read")


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in proto.graph.initializer if tensor.external_data]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    takers = {name: node for node in reversed(proto.graph.node) for name in node.input}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    return tuple(_input(file, value, takers.get(value.name)) for value in inputs)


def _input(file: Path, value: onnx.ValueInfoProto, taker: onnx.NodeProto | None) -> Input:
    to = f" (to {taker.name or 'a node'}, {taker.op_type})" if taker else ""
    dtype = _dtype(file, value, f"its input {value.name}{to}", "feed it what is computed from that, as a tensor")
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return Input(value.name, dtype, None)
    sizes = (
        int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or f"{value.name}.{axis}"
        for axis, dim in enumerate(kind.shape.dim)
    )
    return Input(value.name, dtype, tuple(sizes))


def _check_outputs(file: Path, proto: onnx.ModelProto) -> None:
    makers = {name: node for node in proto.graph.node for name in node.output}
    for value in proto.graph.output:
        if value.type.WhichOneof("value"):
            node = makers.get(value.name)
            by = f" (of {node.name or 'a node'}, {node.op_type})" if node else ""
            remedy = REMEDIES.get(node.op_type if node else "", "take it out of the model's outputs")
            _dtype(file, value, f"its output {value.name}{by}", remedy)


def _dtype(file: Path, value: onnx.ValueInfoProto, what: str, remedy: str) -> np.dtype[Any]:
    """Return the type of a tensor that bundles describe."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise UnsupportedError(file, f"{what} is {KINDS.get(kind, 'of no known type')}", remedy)
    dtype = ir.DataType(value.type.tensor_type.elem_type)
    if dtype not in DTYPES:
        allowed = ", ".join(sorted(DTYPES.values()))
        raise UnsupportedError(file, f"{what} is {dtype.name.lower()}, and a bundle has {allowed}", remedy)
    return np.dtype(dtype.numpy())


def weights_sha256(proto: onnx.ModelProto) -> str:
    """Hash every initializer, sorted by name."""
    digest = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda each: each.name):
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        digest.update(f"{tensor.name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
