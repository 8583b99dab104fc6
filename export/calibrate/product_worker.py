"""A worker that multiplies tokens by matrices of a checkpoint in bf16, with torch: one product after the other.

A product is asked for on stdin: its `Product` as MessagePack behind a length, then the tokens [n, columns] in bf16. The
answer on stdout is [n, rows of a chunk] in bf16 for each chunk of the matrix's rows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
from numpy.typing import NDArray

from edgeglm.export.checkpoint.tensor import Tensor

# Of rows in bf16 that are multiplied at once.
CHUNK_BYTES = 8 << 20
_LENGTH = 8


class Product(msgspec.Struct, frozen=True):
    """A product of `tokens` with a matrix of `rows` and `columns` that lies at `offset` in a file."""

    file: str
    offset: int
    rows: int
    tokens: int
    columns: int


def row_chunks(product: Product) -> Iterator[tuple[int, int]]:
    """Yield the first row of each chunk, and the row behind it."""
    step = max(1, CHUNK_BYTES // (2 * product.columns))
    return ((start, min(start + step, product.rows)) for start in range(0, product.rows, step))


def send(stream: IO[bytes], product: Product, tokens: NDArray[Any]) -> None:
    """Ask for a product. Raises BrokenPipeError where the worker has ended."""
    header = msgspec.msgpack.encode(product)
    stream.write(len(header).to_bytes(_LENGTH, "little") + header)
    stream.write(tokens.tobytes())
    stream.flush()


def main() -> None:
    """Answer until stdin ends."""
    import torch  # noqa: PLC0415  # the parent reads this file too, and has no torch

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    while len(size := sys.stdin.buffer.read(_LENGTH)) == _LENGTH:
        product = msgspec.msgpack.decode(sys.stdin.buffer.read(int.from_bytes(size, "little")), type=Product)
        data = sys.stdin.buffer.read(2 * product.tokens * product.columns)
        tokens = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(product.tokens, product.columns)
        shape = (product.rows, product.columns)
        matrix = Tensor("weight", Path(product.file), product.offset, "BF16", shape)
        for start, stop in row_chunks(product):
            rows = torch.from_numpy(matrix.read(start, stop, keep_pages=True)).view(torch.bfloat16)
            made = tokens @ rows.reshape(-1, product.columns).T
            view = memoryview(made.view(torch.int16).numpy().tobytes())
            while view:
                view = view[answers.write(view) :]
