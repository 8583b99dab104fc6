"""Emit a quantized graph as ONNX: a small ``model.onnx`` and one file of weights that an engine maps into memory.

The layout of the weights follows from their shapes alone, so that sizes are known, and the graph can be written,
before a weight is read. Then every weight is one job whose pieces go straight to their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.model import Part, Stored
from edgeglm.export.quantize.stream import Piece

# Pages map whole; small vectors need no more than what vector instructions like.
PAGE, LINE = 4096, 64
# Of strips in memory at once.
JOINED_BYTES = 64 << 20


class Output(Protocol):
    """A file that is written at given offsets."""

    def pwrite(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`."""


@dataclass(frozen=True)
class Layout:
    """The offset of each part of each stored weight in the file of weights, and the file's length."""

    offsets: tuple[tuple[int, ...], ...]
    nbytes: int


def lay_out(weights: Sequence[Stored]) -> Layout:
    """Put the parts one after the other, large ones on page boundaries."""
    end, offsets = 0, []
    for stored in weights:
        row = []
        for part in stored.parts:
            align = PAGE if part.nbytes >= PAGE else LINE
            begin = -(-end // align) * align
            row.append(begin)
            end = begin + part.nbytes
        offsets.append(tuple(row))
    return Layout(tuple(offsets), end)


def bind(model: ir.Model, weights: Sequence[Stored], layout: Layout, location: str) -> None:
    """Point the graph's initializers into the file at `location`, relative to the model."""
    initializers = model.graph.initializers
    for stored, offsets in zip(weights, layout.offsets, strict=True):
        for part, name, offset in zip(stored.parts, stored.initializers, offsets, strict=True):
            shape = ir.Shape(part.shape)
            initializers[name].const_value = ir.ExternalTensor(
                location, offset, part.nbytes, part.dtype, shape=shape, name=name
            )


def write(pieces: Iterable[Piece], stored: Stored, offsets: Sequence[int], output: Output) -> None:
    """Write the encoded pieces of one stored weight to its parts' places.

    Scales wait until the weight before them is whole: the file then fills in order, and its hash needs no second look.

    Args:
        pieces: In order. Of a [K, N] array they are strips of columns, joined to wide ones, or to the whole.
        stored: The weight.
        offsets: Of its parts in the file, in bytes.
        output: The file.
    """
    waiting: list[tuple[int, int, NDArray[Any]]] = []
    strips: list[tuple[int, NDArray[Any]]] = []
    first, offset = stored.parts[0], offsets[0]
    for piece in pieces:
        waiting += [(index, piece.start, piece.arrays[index]) for index in range(1, len(stored.parts))]
        if first.row_axis == 0:
            _place(output, offset, first, piece.start, stored.rows, piece.arrays[0])
            continue
        strips.append((piece.start, piece.arrays[0]))
        if sum(strip.nbytes for _, strip in strips) >= JOINED_BYTES:
            _join(output, offset, first, stored.rows, strips)
    if strips:
        _join(output, offset, first, stored.rows, strips)
    for index, start, array in sorted(waiting, key=lambda strip: strip[:2]):
        _place(output, offsets[index], stored.parts[index], start, stored.rows, array)


def _join(output: Output, offset: int, part: Part, rows: int, strips: list[tuple[int, NDArray[Any]]]) -> None:
    start, array = strips[0][0], np.concatenate([strip for _, strip in strips], axis=1)
    strips.clear()
    _place(output, offset, part, start, rows, array)


def _place(output: Output, offset: int, part: Part, start: int, rows: int, array: NDArray[Any]) -> None:
    if part.row_axis == 0:
        output.pwrite(offset + start * part.nbytes // rows, array.data)
        return
    # A strip of columns of a [K, rows] array: one piece a line.
    stride = part.nbytes // part.shape[0]
    if array.nbytes == part.nbytes:
        output.pwrite(offset, array.data)
        return
    for line, strip in enumerate(array):
        output.pwrite(offset + line * stride + start * stride // rows, strip.data)
