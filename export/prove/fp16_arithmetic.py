"""An ONNX graph as an accelerator computes it in half precision: each operator in fp32, its result rounded to fp16.

A product of matrices is summed in fp32 and rounded once, as tensor cores do; what is beyond 65,504 becomes infinite.
ONNX Runtime's CPU provider is no judge of that: it computes fp16 graphs in fp32 and drops the roundings in between.

Any graph without bodies (If, Loop, Scan) can be run. It goes node by node, so that memory holds the values that are
still needed; a matrix in a file is read, and dequantized, by pieces while it is multiplied. The operators are those of
`onnx.reference`, and nothing here knows how the graph was made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
CHUNK_BYTES = 4 << 20  # of fp32 weights at once
# Have their result types from an attribute or another operand.
TYPED = {"Cast", "CastLike", "DequantizeLinear"}
# Compute nothing: their results need no rounding.
MOVES = set(
    "Concat Constant ConstantOfShape Expand Flatten Gather Identity Reshape Shape Slice Split Squeeze Tile Transpose"
    " Unsqueeze".split()
)


class _Matrix(Protocol):
    """A matrix that is read by lines of its first axis."""

    shape: tuple[int, ...]

    def lines(self, start: int, stop: int) -> Array:
        """Return the lines `start` to `stop`, in the type that the graph gives them."""


class HalfGraph:
    """A graph to be run more than once.

    Args:
        proto: The model, whose large weights may be in files.
        folder: Where those files are.

    Raises:
        ValueError: A node has a body.
    """

    def __init__(self, proto: onnx.ModelProto, folder: Path) -> None:
        self.nodes = list(proto.graph.node)
        self.outputs = [value.name for value in proto.graph.output]
        self.opsets = {opset.domain: opset.version for opset in proto.opset_import}
        self.weights = {tensor.name: _Stored(tensor, folder) for tensor in proto.graph.initializer}
        self.overflow: str | None = None
        for node in self.nodes:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ValueError(f"{node.op_type} {node.name} has a body, which is not computed in half precision")
        self._evaluators: dict[int, ReferenceEvaluator] = {}
        self._last = {name: index for index, node in enumerate(self.nodes) for name in node.input}

    @classmethod
    def open(cls, path: Path) -> HalfGraph:
        """Return a graph with its weights beside it."""
        return cls(onnx.load(path, load_external_data=False), path.parent)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name; `overflow` is then the first node that makes finite inputs infinite."""
        values: dict[str, Array | _Matrix] = dict(feeds)
        self.overflow = None
        with np.errstate(all="ignore"):
            for index, node in enumerate(self.nodes):
                self._step(index, node, values)
            return {name: _whole(values.get(name, self.weights.get(name))) for name in self.outputs}

    def _step(self, index: int, node: NodeProto, values: dict[str, Array | _Matrix]) -> None:
        operands = [values.get(name, self.weights.get(name)) if name else None for name in node.input]
        lazy = LAZY.get(node.op_type) if not node.domain else None
        result = lazy(node, operands) if lazy else None
        results = (
            [result] if result is not None else self._compute(index, node, [_whole(operand) for operand in operands])
        )
        values.update((name, value) for name, value in zip(node.output, results, strict=False) if name)
        if self.overflow is None and not _finite(results) and _finite(operands):
            self.overflow = node.output[0]
        for name in {*node.input, *node.output}:
            if self._last.get(name, -1) <= index and name not in self.outputs:
                values.pop(name, None)

    def _compute(self, index: int, node: NodeProto, operands: Sequence[Any]) -> Sequence[Array]:
        dtypes = [
            operand.dtype for operand in operands if operand is not None and operand.dtype in (HALF, SINGLE, np.float64)
        ]
        half = bool(dtypes) and dtypes[0] == HALF
        widened = node.op_type not in TYPED | MOVES
        if widened:
            operands = [
                operand.astype(SINGLE) if operand is not None and operand.dtype == HALF else operand
                for operand in operands
            ]
        feeds = {name: operand for name, operand in zip(node.input, operands, strict=True) if operand is not None}
        results = [np.asarray(array) for array in self._evaluator(index).run(None, feeds)]
        return [array.astype(HALF) if widened and half and array.dtype == SINGLE else array for array in results]

    def _evaluator(self, index: int) -> ReferenceEvaluator:
        if index not in self._evaluators:
            node = self.nodes[index]
            inputs, outputs = (
                [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name]
                for names in (node.input, node.output)
            )
            graph = onnx.helper.make_graph([node], "node", inputs, outputs)
            self._evaluators[index] = ReferenceEvaluator(graph, opsets=self.opsets)
        return self._evaluators[index]


class _Stored:
    """A weight: in a file, or in the graph."""

    def __init__(self, tensor: TensorProto, folder: Path) -> None:
        self.tensor, self.shape, self.path = tensor, tuple(tensor.dims), None
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            self.path, self.offset = folder / info.location, info.offset or 0

    @property
    def in_lines(self) -> bool:
        """Whether it is a matrix of a type that is read by lines."""
        even = self.tensor.data_type not in PACKED or self.shape[-1] % 2 == 0
        return self.path is not None and len(self.shape) == 2 and self.tensor.data_type in READ and even

    def lines(self, start: int, stop: int) -> Array:
        """Read some."""
        read, (_, columns) = READ[self.tensor.data_type], self.shape
        return read(self._raw(start, stop), columns)

    def whole(self) -> Array:
        """Read all."""
        if self.path is None:
            return np.asarray(numpy_helper.to_array(self.tensor))
        loaded = TensorProto()
        loaded.CopyFrom(self.tensor)
        loaded.ClearField("external_data")
        loaded.data_location = TensorProto.DEFAULT
        loaded.raw_data = self._read(self.offset, ExternalDataInfo(self.tensor).length)
        return np.asarray(numpy_helper.to_array(loaded))

    def _raw(self, start: int, stop: int) -> bytes:
        bits = 4 if self.tensor.data_type in PACKED else 8 * WIDTHS[self.tensor.data_type]
        line = self.shape[1] * bits // 8
        return self._read(self.offset + start * line, (stop - start) * line)

    def _read(self, offset: int, length: int | None) -> bytes:
        assert self.path is not None
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size - offset if length is None else length
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


class _Dequantized:
    """Codes times their scales, rounded to the scales' type: one a column, or one a block of lines."""

    def __init__(self, codes: _Stored, scale: Array, zero: Array | None, block: int) -> None:
        self.codes, self.scale, self.zero, self.block, self.shape = codes, scale, zero, block, codes.shape

    def lines(self, start: int, stop: int) -> Array:
        """Read and dequantize some."""
        codes = self.codes.lines(start, stop).astype(SINGLE)
        if self.zero is not None:
            codes -= self._spread(self.zero, start, stop).astype(SINGLE)
        codes *= self._spread(self.scale, start, stop).astype(SINGLE)
        return codes.astype(self.scale.dtype)

    def _spread(self, array: Array, start: int, stop: int) -> Array:
        if not self.block:
            return array.reshape(1, -1)
        first = start // self.block
        blocks = array[first : -(-stop // self.block)]
        return np.repeat(blocks, self.block, axis=0)[start - first * self.block : stop - first * self.block]


class _Cast:
    """A matrix in another type."""

    def __init__(self, matrix: _Matrix, dtype: np.dtype[Any]) -> None:
        self.matrix, self.dtype, self.shape = matrix, dtype, matrix.shape

    def lines(self, start: int, stop: int) -> Array:
        """Read some and cast them."""
        return self.matrix.lines(start, stop).astype(self.dtype)


def _product(node: NodeProto, operands: Sequence[Any]) -> Array | None:
    """Return ``x @ matrix``, by pieces of the matrix, with one rounding at the end."""
    x, matrix = operands
    if isinstance(x, _Stored) or not _is_matrix(matrix):
        return None
    left, dtype = np.asarray(x).astype(SINGLE, copy=False), np.asarray(x).dtype
    total = np.zeros((*left.shape[:-1], matrix.shape[1]), SINGLE)
    for start, stop in _pieces(matrix):
        total += left[..., start:stop] @ matrix.lines(start, stop).astype(SINGLE, copy=False)
    return total.astype(dtype, copy=False)


def _dequantize(node: NodeProto, operands: Sequence[Any]) -> _Dequantized | None:
    codes, scale, zero = (*operands, None)[:3]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    if not _is_matrix(codes) or (axis, bool(block)) not in ((1, False), (0, True)) or "output_dtype" in attributes:
        return None
    return _Dequantized(codes, _whole(scale), _whole(zero), block)


def _cast(node: NodeProto, operands: Sequence[Any]) -> _Cast | None:
    (matrix,) = operands
    to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
    if not _is_matrix(matrix) or to not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return None
    return _Cast(matrix, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)))


LAZY: dict[str, Callable[[NodeProto, Sequence[Any]], Array | _Matrix | None]] = {
    "MatMul": _product,
    "DequantizeLinear": _dequantize,
    "Cast": _cast,
}


def _is_matrix(value: object) -> bool:
    return value.in_lines if isinstance(value, _Stored) else isinstance(value, _Dequantized | _Cast)


def _pieces(matrix: _Matrix) -> Iterator[tuple[int, int]]:
    count, columns = matrix.shape
    step = max(1, CHUNK_BYTES // (4 * columns))
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _whole(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, _Stored):
        return value.whole()
    return value.lines(0, value.shape[0]) if _is_matrix(value) else value


def _finite(values: Sequence[object]) -> bool:
    """Return whether all arrays in half precision are finite."""
    return all(
        bool(np.isfinite(value).all()) for value in values if isinstance(value, np.ndarray) and value.dtype == HALF
    )


def _plain(dtype: type[np.generic]) -> Callable[[bytes, int], Array]:
    return lambda raw, columns: np.frombuffer(raw, dtype).reshape(-1, columns)


def _nibbles(dtype: type[np.generic]) -> Callable[[bytes, int], Array]:
    """Return two codes a byte, the first in its low half."""

    def read(raw: bytes, columns: int) -> Array:
        pairs = np.frombuffer(raw, dtype).reshape(-1, columns // 2)
        return np.stack([np.left_shift(pairs, 4) >> 4, pairs >> 4], axis=-1).reshape(-1, columns)

    return read


PACKED = {TensorProto.INT4, TensorProto.UINT4}
WIDTHS: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.UINT8: 1}
READ: dict[int, Callable[[bytes, int], Array]] = {
    TensorProto.FLOAT: _plain(np.float32),
    TensorProto.FLOAT16: _plain(np.float16),
    TensorProto.INT8: _plain(np.int8),
    TensorProto.UINT8: _plain(np.uint8),
    TensorProto.INT4: _nibbles(np.int8),
    TensorProto.UINT4: _nibbles(np.uint8),
}
