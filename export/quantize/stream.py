"""Read a stored weight by chunks of rows and encode them: what bounds the memory of an export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.engines import Dialect
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.model import Rows, Stored, rotary_order
from edgeglm.export.quantize.feedback import Inputs
from edgeglm.export.quantize.kept import is_kept, read_kept
from edgeglm.export.quantize.rounding import check_range
from edgeglm.export.quantize.storage import encode, keep

CHUNK_BYTES = 16 << 20  # of fp32 rows in memory at once
WORKERS = min(4, len(os.sched_getaffinity(0)))  # threads that encode chunks at the same time


@dataclass(frozen=True)
class Piece:
    """A piece of a stored weight: some rows, encoded for each part, beginning with row `start`.

    `origin` is the checkpoint's tensor that they are from, `source` their bytes there.
    """

    start: int
    arrays: tuple[NDArray[Any], ...]
    origin: str
    source: NDArray[np.uint8]


@dataclass(frozen=True)
class Chunk:
    """Rows `begin` to `end` of a checkpoint's tensor, which are the rows from `start` of a stored weight."""

    origin: str
    begin: int
    end: int
    start: int


def pieces(stored: Stored, source: Rows, dialect: Dialect) -> Iterator[Piece]:
    """Yield the encoded chunks of `stored`, in the order of its rows."""
    return (encode_chunk(chunk, stored, source, dialect) for chunk in chunks(stored, source))


def chunks(stored: Stored, source: Rows) -> Iterator[Chunk]:
    """Cut the tensors of `stored`, one after the other, into chunks of at most `CHUNK_BYTES`."""
    whole = max(1, stored.head_dim, *(part.row_multiple for part in stored.parts))
    step = max(whole, CHUNK_BYTES // (4 * stored.columns) // whole * whole)
    first = 0
    for name in stored.names:
        count = source.find(name).shape[0]
        for begin in range(0, count, step):
            yield Chunk(name, begin, min(begin + step, count), first + begin)
        first += count


def encode_chunk(
    chunk: Chunk,
    stored: Stored,
    source: Rows,
    dialect: Dialect,
    inputs: Inputs | None = None,
    divisor: NDArray[np.float32] | None = None,
) -> Piece:
    """Read one chunk and encode it, or keep the codes that the checkpoint has.

    Args:
        chunk: Rows or columns of the matrix.
        stored: How it is stored.
        source: The checkpoint.
        dialect: The engine's.
        inputs: Of its columns, where they are known (`storage.encode`).
        divisor: What each of the tensor's rows is divided by, a power of two.

    Raises:
        ValueError: It holds NaN or infinity.
        OverflowError: It holds more than the stored type can.
    """
    raw = source.read_bytes(chunk.origin, chunk.begin, chunk.end)
    matrix = source.find(chunk.origin)
    if isinstance(matrix, Matrix) and is_kept(matrix, stored.scheme, dialect):
        kept = read_kept(matrix, raw, stored.scheme)
        codes, scales, zeros = (_split_rotary(array, stored) for array in (kept.codes, kept.scales, kept.zeros))
        arrays = keep(stored.scheme, dialect, codes, scales, zeros, stored.parts[1].dtype)
        return Piece(chunk.start, arrays, chunk.origin, raw)
    rows = source.decode(chunk.origin, raw).reshape(-1, stored.columns)
    if divisor is not None:
        rows = rows / divisor[chunk.begin : chunk.end, None]
    return Piece(chunk.start, _encode(stored, _split_rotary(rows, stored), dialect, inputs), chunk.origin, raw)


def _encode(
    stored: Stored, rows: NDArray[np.float32], dialect: Dialect, inputs: Inputs | None
) -> tuple[NDArray[Any], ...]:
    first, *others = stored.parts
    if len(first.shape) == 1 and not others:  # a bias or a norm
        check_range(np.abs(rows), first.dtype.numpy())
        return (rows[:, 0].astype(first.dtype.numpy()),)
    # Scales are in the type of the activations; a weight without them does not depend on it.
    return encode(stored.scheme, dialect, rows, others[0].dtype if others else ir.DataType.FLOAT, inputs)


def _split_rotary(rows: NDArray[Any], stored: Stored) -> NDArray[Any]:
    if not stored.split_rotary:
        return rows
    order = rotary_order(stored.split_rotary, stored.head_dim)
    return np.ascontiguousarray(rows.reshape(-1, stored.head_dim, rows.shape[1])[:, order].reshape(rows.shape))
