"""Round a weight and its activations as a scheme does, without storing anything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeglm.engines import DIALECTS, Dialect
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.model import Rows
from edgeglm.export.quantize.feedback import Inputs
from edgeglm.export.quantize.kept import is_kept, kept_scheme, read_kept
from edgeglm.export.quantize.lowering import TOKEN_STEP
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.quantize.schemes import Blocked, Int8, Int8Static, Scheme, with_range
from edgeglm.export.quantize.storage import dequantize, encode

CHUNK_BYTES = 1 << 20  # of fp32 rows at once: what stays in the processor's cache
KEPT_BYTES = 64 << 20  # of rounded weights, so that those of a small block are rounded once for many inputs


class RoundedWeights:
    """A checkpoint's weights as a scheme stores them and an engine multiplies by them.

    What `prove.reference.Weights` asks for. Vectors stay as they are. The activations of the ``ort`` dialect are
    rounded as its operators do it.
    """

    def __init__(
        self,
        source: Rows,
        scheme: Scheme,
        dialect: Dialect,
        inputs: Mapping[str, Inputs],
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        self.source, self.scheme, self.dialect = source, scheme, dialect
        self.inputs, self.ranges = inputs, ranges
        self.kept: dict[tuple[str, int], Floats] = {}
        self.room = KEPT_BYTES

    def product(self, x: Floats, weight: str) -> Floats:
        """Return ``x W^T`` over the last axis, by chunks of rows."""
        count, *inner = self.source.find(weight).shape
        columns = int(np.prod(inner))
        step = max(2, CHUNK_BYTES // (4 * columns) // 2 * 2)
        scheme = with_range(self.scheme, self.ranges.get(weight))
        known = self.inputs.get(weight)
        x = x if known is None or known.factor is None else x / known.factor
        x = round_activations(x, scheme) if DIALECTS[self.dialect].contrib else x
        y = np.empty((*x.shape[:-1], count), np.float32)
        for start in range(0, count, step):
            stop = min(start + step, count)
            y[..., start:stop] = x @ self._rows(weight, start, stop, columns).T
        return y

    def vector(self, name: str) -> Floats:
        """Read whole."""
        return self.source.rows(name)

    def _rows(self, weight: str, start: int, stop: int, columns: int) -> Floats:
        if (weight, start) in self.kept:
            return self.kept[weight, start]
        rounded = self._round(weight, start, stop, columns)
        if rounded.nbytes <= self.room:
            self.room -= rounded.nbytes
            self.kept[weight, start] = rounded
        return rounded

    def _round(self, weight: str, start: int, stop: int, columns: int) -> Floats:
        matrix = self.source.find(weight)
        if isinstance(matrix, Matrix) and is_kept(matrix, self.scheme, self.dialect):
            scheme = kept_scheme(self.scheme, [matrix], self.dialect)
            return read_kept(matrix, self.source.read_bytes(weight, start, stop), scheme).values
        rows = self.source.rows(weight, start, stop).reshape(stop - start, columns)
        if DIALECTS[self.dialect].is_plain and len(rows) % 2:  # whose INT4 packs rows in pairs
            rows = np.concatenate([rows, np.zeros_like(rows[:1])])
        stored = encode(self.scheme, self.dialect, rows, inputs=self.inputs.get(weight))
        return dequantize(self.scheme, self.dialect, stored, columns)[: stop - start]


def round_activations(x: Floats, scheme: Scheme) -> Floats:
    """Round activations [..., columns] as ONNX Runtime's operators do, see `lowering`: INT8 by token or by block."""
    if isinstance(scheme, Int8):
        return _by_token(x)
    if isinstance(scheme, Int8Static):
        return _in_range(x, scheme)
    return _by_block(x, scheme.block_size) if isinstance(scheme, Blocked) else x


def _in_range(x: Floats, scheme: Int8Static) -> Floats:
    """Return the codes of the calibrated range; what lies outside is clipped (QuantizeLinear)."""
    step, zero = np.float32(scheme.step), scheme.zero_point
    rounded: Floats = (np.clip(np.rint(x / step) + zero, 0, 255) - zero).astype(np.float32) * step
    return rounded


def _by_token(x: Floats) -> Floats:
    """Divide by each token's largest magnitude, then round to 255 steps (QuantizeLinear)."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    step = np.float32(TOKEN_STEP)
    rounded: Floats = np.rint(x / largest / step) * step * largest
    return rounded


def _by_block(x: Floats, size: int) -> Floats:
    """Round to 255 steps over the largest magnitude of `size` channels of a token (MatMulNBits, accuracy level 4)."""
    columns = x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -columns % size)]).reshape(*x.shape[:-1], -1, size)
    step = np.maximum(np.abs(padded).max(-1, keepdims=True) / np.float32(127), np.float32(1e-30))
    rounded: Floats = (np.rint(padded / step) * step).reshape(*x.shape[:-1], -1)[..., :columns]
    return rounded
