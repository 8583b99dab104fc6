"""ONNX Runtime on the CPU: encoders, and decoders of either dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.manifest import Module
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.session import MAX_LAST, Feeds, check_last
from edgeglm.runtimes.engines.ort.described import as_described
from edgeglm.runtimes.engines.ort.options import open_session, saturates
from edgeglm.runtimes.engines.ort.weights import prepacked
from edgeglm.runtimes.inputs.positions import causal_mask

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def available(module: Module, inputs: int = 1) -> bool:
    """Return True: where the runner is, ONNX Runtime is."""
    return True


def place(module: Module, inputs: int) -> str:
    """Return the engine's own place."""
    return ENGINES["ort"].place


def note(module: Module) -> str | None:
    """Return None: its modules run where their names say."""
    return None


def version() -> str:
    """Return ONNX Runtime's version, and whether its INT8 products are told to be exact here."""
    return f"{onnxruntime.__version__}{' exact' if saturates() else ''}"


def open_encoder(bundle: Bundle, module: Module, threads: int) -> Encoder:
    """Open a module without a state. Raises DamagedFileError."""
    path = bundle.path(module.file)
    return as_described(path, module, lambda: Encoder(path, threads))


def open_decoder(bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool) -> Decoder:
    """Open a decoder, with `low_rss` from a file of packed weights. Raises DamagedFileError; others as `prepacked`."""
    path, files = bundle.path(module.file), bundle.manifest.files
    if low_rss:
        own = {name: file for name, file in files.items() if name.startswith(f"{module.name}/")}
        path = prepacked(path, own, threads)
        trim()
    return as_described(path, module, lambda: Decoder(path, threads, capacity))


class Encoder:
    """A module without a state; `graph` is as `open_session` takes it."""

    def __init__(self, path: Path, threads: int, graph: bytes | None = None) -> None:
        self.session = open_session(path, threads, graph=graph)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        inputs = {
            tensor.name: feeds[tensor.name].astype(DTYPES[tensor.type], copy=False)
            for tensor in self.session.get_inputs()
        }
        names = [tensor.name for tensor in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True))

    def close(self) -> None:
        """Drop the session."""
        del self.session


class Decoder:
    """A decoder with room for `capacity` tokens.

    In the ``ort`` dialect past and present keys are one buffer of that size, in which the engine fills row after row.
    In the ``portable`` dialect they grow with each step, and stay in the engine's memory in between. A graph without
    the input ``logits_to_keep`` gives the last token's logits alone. `graph` is as `open_session` takes it.
    """

    def __init__(self, path: Path, threads: int, capacity: int, graph: bytes | None = None) -> None:
        self.session, self.capacity, self.length = open_session(path, threads, graph=graph), capacity, 0
        inputs = self.session.get_inputs()
        self.types = {tensor.name: DTYPES[tensor.type] for tensor in inputs}
        self.shapes: dict[str, list[int | str]] = {
            tensor.name: tensor.shape for tensor in inputs if tensor.name.startswith("past_")
        }
        self.shared = "seqlens_k" in self.types
        self.max_last = MAX_LAST if "logits_to_keep" in self.types else 1
        rows = capacity if self.shared else 0
        self.state = {name: self._value(np.zeros(self._sizes(name, rows), self.types[name])) for name in self.shapes}
        logits = self.session.get_outputs()[0]
        self.vocabulary, self.dtype = logits.shape[-1], DTYPES[logits.type]
        self.logits = self._room_for(1)
        self.binding = self.session.io_binding()
        self._bind_state()

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        return self._bytes(1)

    @property
    def state_bytes(self) -> int:
        """Bytes of keys and values at its capacity; a shared buffer's pages are taken as it fills."""
        return self._bytes(self.capacity)

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        """Return the logits of the last tokens, (last, vocabulary). Raises ValueError if they cannot be had."""
        count = hidden.shape[1]
        check_last(last, count, self.max_last)
        total = self.length + count
        if last != self.logits.shape()[1]:
            self.logits = self._room_for(last)
            self._bind_state()
        for name, array in self._inputs(hidden, position_ids, total, last).items():
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        self.session.run_with_iobinding(self.binding)
        if not self.shared:
            present = self.binding.get_outputs()[1:]  # in the order of being bound
            self.state = dict(zip(self.state, present, strict=True))
            self._bind_state()
        self.length = total
        logits: NDArray[np.float32] = self.logits.numpy()[0].astype(np.float32)
        return logits

    def reserve(self, capacity: int) -> None:
        """Make room for more tokens: each buffer is copied once, one after the other."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        for name in self.state if self.shared else ():
            self._replace(name, self.state[name].numpy()[:, :, : self.length], capacity)
        self._bind_state()

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`; a shared buffer is simply filled again from there."""
        if not self.shared and length < self.length:
            for name, value in self.state.items():
                self._replace(name, value.numpy()[:, :, :length], length)
            self._bind_state()
        self.length = min(length, self.length)

    def read_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the keys and values of some tokens, of layer after layer: (tokens, row_bytes). Raises ValueError."""
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"tokens {start} to {stop} of a state of {self.length}")
        parts = [np.moveaxis(value.numpy()[0, :, start:stop], 1, 0) for value in self.state.values()]
        flat = [np.ascontiguousarray(part).reshape(stop - start, -1).view(np.uint8) for part in parts]
        return np.concatenate(flat, axis=1)

    def write_rows(self, start: int, rows: NDArray[np.uint8]) -> None:
        """Put rows of `read_rows` behind the first `start` tokens, where the state then ends. Raises ValueError."""
        stop, end = start + len(rows), 0
        if not 0 <= start <= self.length or stop > self.capacity or rows.shape[1:] != (self.row_bytes,):
            raise ValueError(f"rows {rows.shape} behind token {start} of {self.length}, with room for {self.capacity}")
        self.truncate(start)
        for name in self.state:
            begin, end = end, end + self._bytes(1, name)
            part = np.ascontiguousarray(rows[:, begin:end]).view(self.types[name])
            heads = np.moveaxis(part.reshape(len(rows), *self._sizes(name, 1)[1::2]), 0, 1)
            if not self.shared:
                self._replace(name, self.state[name].numpy(), stop)
            self.state[name].numpy()[0, :, start:stop] = heads
        self.length = stop
        self._bind_state()

    def close(self) -> None:
        """Drop the session and the state."""
        self.state.clear()
        del self.binding, self.session

    def _replace(self, name: str, filled: NDArray[Any], rows: int) -> None:
        """Give a layer's keys or values a buffer of so many rows that begins with those that are filled."""
        grown = np.zeros(self._sizes(name, rows), self.types[name])
        grown[:, :, : filled.shape[2]] = filled
        self.state[name] = self._value(grown)

    def _bind_state(self) -> None:
        """Bind what the engine reads and writes at each step, two buffers a layer; only after they changed."""
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self.binding.bind_ortvalue_output("logits", self.logits)
        for name, value in self.state.items():
            self.binding.bind_ortvalue_input(name, value)
            if self.shared:
                self.binding.bind_ortvalue_output(_present(name), value)
            else:
                self.binding.bind_output(_present(name))

    def _inputs(
        self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], total: int, last: int
    ) -> dict[str, NDArray[Any]]:
        count = hidden.shape[1]
        everything: dict[str, NDArray[Any]] = {
            "hidden": hidden,
            "position_ids": position_ids,
            "seqlens_k": np.array([total - 1]),
            "total_length": np.array([total]),
            "logits_to_keep": np.array([last]),
        }
        if "mask" in self.types:
            everything["mask"] = causal_mask(count, total)
        return {
            name: everything[name].astype(dtype, copy=False)
            for name, dtype in self.types.items()
            if name not in self.state
        }

    def _sizes(self, name: str, rows: int) -> list[int]:
        return [size if isinstance(size, int) else rows for size in self.shapes[name]]

    def _bytes(self, rows: int, *names: str) -> int:
        """Return the bytes of so many rows of a layer's keys or values; of all if none is named."""
        return sum(
            int(np.prod(self._sizes(name, rows))) * np.dtype(self.types[name]).itemsize for name in names or self.shapes
        )

    def _room_for(self, last: int) -> OrtValue:
        return self._value(np.zeros((1, last, self.vocabulary), self.dtype))

    def _value(self, array: NDArray[Any]) -> OrtValue:
        return OrtValue.ortvalue_from_numpy(array)  # on the array's own memory


def _present(name: str) -> str:
    return name.replace("past_", "present_", 1)
