"""Rows of one sequence: its keys and values in ONNX Runtime, of which any tokens can be read, written and forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeglm.runtimes.core.window import piece_for
from edgeglm.runtimes.engines.ort.key_values import KeyValues


class Rows:
    """Keys and values with room for `capacity` tokens, and none in them yet.

    `heads` are those of scores that the graph has as a tensor; 0 if it has none.
    """

    def __init__(self, state: KeyValues, capacity: int, heads: int) -> None:
        self.state, self.capacity, self.heads, self.length = state, capacity, heads, 0

    def pieces(self, count: int, last: int) -> Iterable[tuple[int, int]]:
        """Return the bounds of the passes in which `count` tokens are computed, the last one with `last` of them."""
        size = max(last, piece_for(self.heads, self.length + count)) if self.heads else count
        return pairwise((0, *reversed(range(count, 0, -size))))  # the last piece is a whole one

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        return self.state.row_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of keys and values at its capacity; a buffer's pages are taken as it fills."""
        return self.row_bytes * self.capacity

    def reserve(self, capacity: int) -> None:
        """Make room for more tokens: each buffer is copied once, one after the other."""
        if capacity > self.capacity:
            self.capacity = capacity
            self.state.resize(self.length, capacity)

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`; a buffer is simply filled again from there."""
        if length < self.length:
            self.length = length
            self.state.resize(length, self.capacity)

    def read_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the keys and values of some tokens, of layer after layer: (tokens, row_bytes). Raises ValueError."""
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"tokens {start} to {stop} of a state of {self.length}")
        rows, end = np.empty((stop - start, self.row_bytes), np.uint8), 0
        for part in self.state.tokens(start, stop):
            begin, end = end, end + part[:1].nbytes
            rows[:, begin:end] = np.ascontiguousarray(part).reshape(stop - start, -1).view(np.uint8)
        return rows

    def write_rows(self, start: int, rows: NDArray[np.uint8]) -> None:
        """Put rows of `read_rows` behind the first `start` tokens, where the state then ends. Raises ValueError."""
        stop, end = start + len(rows), 0
        if not 0 <= start <= self.length or stop > self.capacity or rows.shape[1:] != (self.row_bytes,):
            raise ValueError(f"rows {rows.shape} behind token {start} of {self.length}, with room for {self.capacity}")
        self.truncate(start)
        self.length = stop
        self.state.resize(stop, self.capacity)
        for part in self.state.tokens(start, stop):
            begin, end = end, end + part[:1].nbytes
            part[...] = np.ascontiguousarray(rows[:, begin:end]).view(part.dtype).reshape(part.shape)
