"""Keys and values of a decoder in memory that only addresses reach, such as a GPU's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Memory(Protocol):
    """The memory that holds keys and values."""

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes, in the order of asking."""

    def wait(self) -> None:
        """Return when all is copied."""


class KeyValues:
    """Keys and values of all tokens so far, [heads, tokens, width] without gaps.

    All of them are an input of each step, and with the new tokens an output, so each tensor has two buffers that take
    turns.

    Attributes:
        length: How many tokens are in it.
        buffers: By name, the address of the tokens so far, and where the next step writes.
    """

    def __init__(self, memory: Memory, rows: Mapping[str, tuple[int, int]], capacity: int) -> None:
        self._memory, self._rows, self.capacity, self.length = memory, rows, capacity, 0
        self.buffers = {name: (self._allocate(name), self._allocate(name)) for name in rows}

    @property
    def bytes(self) -> int:
        """The bytes of all buffers."""
        return 2 * sum(heads * width * self.capacity for heads, width in self._rows.values())

    def advance(self, count: int) -> None:
        """Count the `count` tokens that a step has written."""
        self.length += count
        self._turn()

    def reserve(self, capacity: int) -> None:
        """Make room for more tokens: one tensor's buffers grow after the other's."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        for name, (heads, width) in self._rows.items():
            now, following = self.buffers[name]
            self._memory.free(following)
            grown = self._allocate(name)
            self._memory.copy(grown, now, heads * width * self.length)
            self._memory.wait()
            self._memory.free(now)
            self.buffers[name] = grown, self._allocate(name)

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`: those of each head move together."""
        if length >= self.length:
            return
        for name, (heads, width) in self._rows.items():
            now, following = self.buffers[name]
            for head in range(heads if length else 0):
                self._memory.copy(following + head * length * width, now + head * self.length * width, length * width)
        self._memory.wait()
        self.length = length
        self._turn()

    def close(self) -> None:
        """Give the buffers back."""
        for pair in self.buffers.values():
            for address in pair:
                self._memory.free(address)
        self.buffers = {}

    def _allocate(self, name: str) -> int:
        heads, width = self._rows[name]
        return self._memory.allocate(heads * width * self.capacity)

    def _turn(self) -> None:
        self.buffers = {name: (following, now) for name, (now, following) in self.buffers.items()}
