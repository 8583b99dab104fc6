"""Keys and values of a decoder in ONNX Runtime, in the three forms that its graphs have had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnxruntime import IOBinding, NodeArg, OrtValue

from edgeglm.runtimes.core.heap import give_back

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class KeyValues(Protocol):
    """Keys and values of every layer, one array each: the filled rows are the tokens."""

    row_bytes: int

    def bind(self, binding: IOBinding, length: int, count: int) -> None:
        """Bind what a step of `count` tokens behind `length` others reads and writes."""

    def take(self, binding: IOBinding) -> None:
        """Keep what a step has written."""

    def resize(self, length: int, capacity: int) -> None:
        """Keep the first `length` tokens, with room for `capacity`."""

    def rest(self, length: int) -> None:
        """Give back the memory behind the first `length` tokens; their room stays."""

    def tokens(self, start: int, stop: int) -> Iterable[NDArray[Any]]:
        """Yield layer by layer views of the keys or values of some tokens, (tokens, heads, head)."""


def key_values(inputs: Sequence[NodeArg], capacity: int) -> KeyValues:
    """Return the keys and values that a graph with these inputs takes, none yet, with room for `capacity` tokens."""
    for form in (Cache, Filled):
        if state := {value.name: value for value in inputs if value.name.startswith(form.prefix)}:
            shared = any(value.name == "seqlens_k" for value in inputs)
            return (Filled if shared else Joined if form is Filled else Cache)(state, capacity)
    raise ValueError("no input is for keys and values")


class Cache:
    """A buffer a layer, token by token, whose filled rows a step reads, and whose next rows it writes."""

    prefix = "cache_"

    def __init__(self, inputs: Mapping[str, NodeArg], capacity: int) -> None:
        self._heads = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
        self._types = {name: DTYPES[value.type] for name, value in inputs.items()}
        self._outputs = {name: name.replace("cache_", "new_", 1) for name in inputs}
        self._buffers, self._addresses = dict[str, NDArray[Any]](), dict[str, int]()
        for name in inputs:
            self._put(name, self._empty(name, capacity))
        self.row_bytes = sum(buffer[:1].nbytes for buffer in self._buffers.values())

    def bind(self, binding: IOBinding, length: int, count: int, least: int = 0) -> None:
        """Bind the rows of all tokens as inputs, at least `least`, and the last `count` as outputs: none is copied."""
        total = max(length + count, least)
        for name, address in self._addresses.items():
            dtype, (heads, width) = self._types[name], self._heads[name]
            binding.bind_input(name, "cpu", 0, dtype, (total, heads, width), address)
            behind = address + length * self._buffers[name].strides[0]
            binding.bind_output(self._outputs[name], "cpu", 0, dtype, (1, count, heads * width), behind)

    def take(self, binding: IOBinding) -> None:
        """Do nothing: what is written is in its place."""

    def resize(self, length: int, capacity: int) -> None:
        """Copy each buffer that is too small, one after the other."""
        for name, buffer in self._buffers.items():
            if len(buffer) < capacity:
                grown = self._empty(name, capacity)
                grown[:length] = buffer[:length]
                self._put(name, grown)

    def rest(self, length: int) -> None:
        """Give back the pages of all rows but the first `length`."""
        for buffer in self._buffers.values():
            give_back(buffer[length:])

    def shrink(self) -> None:
        """Give the buffers back, but for a row each."""
        for name in self._buffers:
            self._put(name, self._empty(name, 1))

    def tokens(self, start: int, stop: int) -> Iterable[NDArray[Any]]:
        """Yield views of the buffers."""
        return (buffer[start:stop] for buffer in self._buffers.values())

    def _empty(self, name: str, capacity: int) -> NDArray[Any]:
        return np.zeros((capacity, *self._heads[name]), self._types[name])

    def _put(self, name: str, buffer: NDArray[Any]) -> None:
        """Take a buffer, with its address: numpy takes a quarter of a binding's time to tell it."""
        self._buffers[name], self._addresses[name] = buffer, buffer.ctypes.data


class Filled:
    """Buffer a layer, head by head, in which the engine itself fills row after row: bundles made at first."""

    prefix = "past_"

    def __init__(self, inputs: Mapping[str, NodeArg], capacity: int) -> None:
        self._shapes = {name: value.shape for name, value in inputs.items()}
        self._types = {name: DTYPES[value.type] for name, value in inputs.items()}
        self._values = {name: OrtValue.ortvalue_from_numpy(self._empty(name, capacity)) for name in inputs}
        self.row_bytes = sum(self._empty(name, 1).nbytes for name in inputs)

    def bind(self, binding: IOBinding, length: int, count: int) -> None:
        """Bind each buffer as input and output."""
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(_present(name), value)

    def take(self, binding: IOBinding) -> None:
        """Do nothing: what is written is in its place."""

    def resize(self, length: int, capacity: int) -> None:
        """Copy each buffer that is too small, one after the other."""
        for name, value in self._values.items():
            if value.shape()[2] < capacity:
                grown = self._empty(name, capacity)
                grown[:, :, :length] = value.numpy()[:, :, :length]
                self._values[name] = OrtValue.ortvalue_from_numpy(grown)

    def rest(self, length: int) -> None:
        """Do nothing: bundles are not made like this any more."""

    def tokens(self, start: int, stop: int) -> Iterable[NDArray[Any]]:
        """Yield views of the buffers."""
        return (np.moveaxis(value.numpy()[0, :, start:stop], 1, 0) for value in self._values.values())

    def _empty(self, name: str, rows: int) -> NDArray[Any]:
        sizes = [size if isinstance(size, int) else rows for size in self._shapes[name]]
        return np.zeros(sizes, self._types[name])


class Joined(Filled):
    """Keys and values that each step joins with its own, in the engine's memory: the ``portable`` dialect."""

    def __init__(self, inputs: Mapping[str, NodeArg], capacity: int) -> None:
        super().__init__(inputs, 0)

    def bind(self, binding: IOBinding, length: int, count: int) -> None:
        """Bind what there is, and let the engine allocate what follows."""
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_output(_present(name))

    def take(self, binding: IOBinding) -> None:
        """Keep the outputs, which are bound behind the logits."""
        self._values = dict(zip(self._values, binding.get_outputs()[1:], strict=True))

    def resize(self, length: int, capacity: int) -> None:
        """Keep exactly `length` tokens."""
        for name, value in self._values.items():
            if (there := min(length, value.shape()[2])) == length == value.shape()[2]:
                continue
            kept = self._empty(name, length)
            kept[:, :, :there] = value.numpy()[:, :, :there]
            self._values[name] = OrtValue.ortvalue_from_numpy(kept)


def _present(name: str) -> str:
    return name.replace("past_", "present_", 1)
