"""The way back: what an emitted file of weights holds, as the fp32 numbers that an engine multiplies by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.engines import Dialect
from edgeglm.export.model import Part, Rows, Stored, rotary_order
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.quantize.storage import dequantize

CHUNK_BYTES = 1 << 20  # of fp32 weights at once: what stays in the processor's cache
# Whole blocks of every size, and whole bytes of INT4.
ALIGN = 128


@dataclass(frozen=True)
class _Place:
    """The place of a tensor's `count` rows in a stored weight."""

    stored: Stored
    offsets: Sequence[int]
    first: int
    count: int


class StoredWeights:
    """Weights by the checkpoint's names, read from the emitted file: what `prove.reference.Weights` asks for.

    Args:
        descriptor: The open file.
        weights: What was stored, with the offsets of each one's parts.
        dialect: Whose form it has.
        source: The checkpoint, for the sizes of tensors that were stored as one.
    """

    def __init__(
        self, descriptor: int, weights: Sequence[tuple[Stored, Sequence[int]]], dialect: Dialect, source: Rows
    ) -> None:
        self.descriptor, self.dialect = descriptor, dialect
        self.places: dict[str, _Place] = {}
        for stored, offsets in weights:
            first = 0
            for name in stored.names:
                shape = source.find(name).shape
                count = shape[0] if shape else 1
                self.places[name] = _Place(stored, offsets, first, count)
                first += count

    def product(self, x: Floats, weight: str) -> Floats:
        """Return ``x W^T`` over the last axis, by pieces that lie together in the file."""
        place = self.places[weight]
        y = self._by_rows(x, place) if place.stored.parts[0].row_axis == 0 else self._by_columns(x, place)
        return self._unsplit(y, place.stored)

    def vector(self, name: str) -> Floats:
        """Return a bias or norm, read whole."""
        place = self.places[name]
        arrays = [self._whole(part, offset) for part, offset in zip(place.stored.parts, place.offsets, strict=True)]
        whole = arrays[0].astype(np.float32)
        if len(arrays) > 1:
            whole = dequantize(place.stored.scheme, self.dialect, tuple(arrays), 1)[:, 0]
        return self._unsplit(whole[place.first : place.first + place.count], place.stored)

    def _by_rows(self, x: Floats, place: _Place) -> Floats:
        stored = place.stored
        step = max(1, CHUNK_BYTES // (4 * stored.columns))
        y = np.empty((*x.shape[:-1], place.count), np.float32)
        for start in range(0, place.count, step):
            stop = min(start + step, place.count)
            arrays = tuple(
                self._read(part, offset, place.first + start, place.first + stop)
                for part, offset in zip(stored.parts, place.offsets, strict=True)
            )
            y[..., start:stop] = x @ dequantize(stored.scheme, self.dialect, arrays, stored.columns).T
        return y

    def _by_columns(self, x: Floats, place: _Place) -> Floats:
        """Read a [K, N] array some lines of K at a time, and of those the tensor's own N."""
        stored, columns = place.stored, place.stored.columns
        step = max(ALIGN, CHUNK_BYTES // (4 * stored.rows) // ALIGN * ALIGN)
        y = np.zeros((*x.shape[:-1], place.count), np.float32)
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            arrays = tuple(
                self._lines(part, offset, (start, stop), place)
                for part, offset in zip(stored.parts, place.offsets, strict=True)
            )
            y += x[..., start:stop] @ dequantize(stored.scheme, self.dialect, arrays, stop - start).T
        return y

    def _lines(self, part: Part, offset: int, span: tuple[int, int], place: _Place) -> NDArray[Any]:
        if part.row_axis == 0:  # a scale a row, whatever the columns
            return self._read(part, offset, place.first, place.first + place.count)
        per_line = 1 if part.shape[0] == place.stored.columns else place.stored.scheme.block_size
        lines = self._read(part, offset, span[0] // per_line, -(-span[1] // per_line))
        per_item = part.shape[1] // lines.shape[1]
        return lines[:, place.first // per_item : (place.first + place.count) // per_item]

    def _read(self, part: Part, offset: int, start: int, stop: int) -> NDArray[Any]:
        """Return the entries `start` to `stop` of a part's first axis; two INT4 elements are one item of the last."""
        line = part.nbytes // part.shape[0]
        raw = os.pread(self.descriptor, (stop - start) * line, offset + start * line)
        dtype = np.dtype(np.uint8) if part.dtype.bitwidth < 8 else part.dtype.numpy()
        return np.frombuffer(raw, dtype).reshape(stop - start, *self._inner(part))

    def _whole(self, part: Part, offset: int) -> NDArray[Any]:
        return np.frombuffer(os.pread(self.descriptor, part.nbytes, offset), part.dtype.numpy())

    def _inner(self, part: Part) -> tuple[int, ...]:
        if len(part.shape) == 1:
            return ()
        *middle, last = part.shape[1:]
        return (*middle, last * part.dtype.bitwidth // 8 if part.dtype.bitwidth < 8 else last)

    def _unsplit(self, y: Floats, stored: Stored) -> Floats:
        if not stored.split_rotary:
            return y
        back = np.argsort(rotary_order(stored.split_rotary, stored.head_dim))
        return y.reshape(*y.shape[:-1], -1, stored.head_dim)[..., back].reshape(y.shape)
