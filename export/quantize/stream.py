"""Read a stored weight by chunks of rows and encode them: what bounds the memory of an export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.model import Dialect, Piece, Rows, Stored
from edgeglm.export.quantize.storage import encode

CHUNK_BYTES = 32 << 20  # of fp32 rows in memory at once


def pieces(stored: Stored, source: Rows, dialect: Dialect) -> Iterator[Piece]:
    """Yield the encoded chunks of `stored`, in the order of its rows."""
    for start, rows in _chunks(stored, source):
        yield Piece(start, _encode(stored, rows, dialect))


def _encode(stored: Stored, rows: NDArray[np.float32], dialect: Dialect) -> tuple[NDArray[Any], ...]:
    last = stored.parts[-1]
    if len(last.shape) == 1 and len(stored.parts) == 1:  # a bias or a norm
        return (rows[:, 0].astype(last.dtype.numpy()),)
    # Scales are in the type of the activations; a weight without them does not depend on it.
    return encode(stored.scheme, dialect, rows, last.dtype if len(stored.parts) > 1 else ir.DataType.FLOAT)


def _chunks(stored: Stored, source: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first row, rows [n, columns]) of the tensors of `stored`, stacked."""
    whole = max(1, stored.head_dim, *(part.row_multiple for part in stored.parts))
    step = max(whole, CHUNK_BYTES // (4 * stored.columns) // whole * whole)
    first = 0
    for name in stored.names:
        count = source.tensors[name].shape[0]
        for start in range(0, count, step):
            rows = source.rows(name, start, min(start + step, count)).reshape(-1, stored.columns)
            yield first + start, _split_rotary(rows, stored)
        first += count


def _split_rotary(rows: NDArray[np.float32], stored: Stored) -> NDArray[np.float32]:
    """Reorder the rotary rows of every head: even ones first, then odd ones."""
    if not stored.split_rotary:
        return rows
    head = np.arange(stored.head_dim)
    rotary, rest = head[: stored.split_rotary], head[stored.split_rotary :]
    order = np.concatenate([rotary[0::2], rotary[1::2], rest])
    return np.ascontiguousarray(rows.reshape(-1, stored.head_dim, stored.columns)[:, order].reshape(rows.shape))
