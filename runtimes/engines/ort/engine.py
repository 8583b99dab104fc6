"""ONNX Runtime on the CPU: encoders, and decoders of either dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.manifest import Module
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.session import Feeds
from edgeglm.runtimes.engines.ort.described import as_described
from edgeglm.runtimes.engines.ort.options import open_session
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
    In the ``portable`` dialect they grow with each step, and stay in the engine's memory in between. `graph` is as
    `open_session` takes it.
    """

    def __init__(self, path: Path, threads: int, capacity: int, graph: bytes | None = None) -> None:
        self.session, self.capacity, self.length = open_session(path, threads, graph=graph), capacity, 0
        inputs = self.session.get_inputs()
        self.types = {tensor.name: DTYPES[tensor.type] for tensor in inputs}
        self.shapes: dict[str, list[int | str]] = {
            tensor.name: tensor.shape for tensor in inputs if tensor.name.startswith("past_")
        }
        self.shared = "seqlens_k" in self.types
        rows = capacity if self.shared else 0
        self.state = {name: self._value(np.zeros(self._sizes(name, rows), self.types[name])) for name in self.shapes}
        logits = self.session.get_outputs()[0]
        self.logits = self._value(np.zeros(logits.shape, DTYPES[logits.type]))
        self.binding = self.session.io_binding()
        self._bind_state()

    @property
    def state_bytes(self) -> int:
        """Bytes of keys and values at its capacity; a shared buffer's pages are taken as it fills."""
        return sum(
            int(np.prod(self._sizes(name, self.capacity))) * np.dtype(self.types[name]).itemsize for name in self.shapes
        )

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits (vocabulary) of the last token."""
        count = hidden.shape[1]
        total = self.length + count
        for name, array in self._inputs(hidden, position_ids, total).items():
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        self.session.run_with_iobinding(self.binding)
        if not self.shared:
            present = self.binding.get_outputs()[1:]  # in the order of being bound
            self.state = dict(zip(self.state, present, strict=True))
            self._bind_state()
        self.length = total
        last: NDArray[np.float32] = self.logits.numpy().astype(np.float32).reshape(-1)
        return last

    def reserve(self, capacity: int) -> None:
        """Make room for more tokens: each buffer is copied once, one after the other."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        for name in self.state if self.shared else ():
            grown = np.zeros(self._sizes(name, capacity), self.types[name])
            grown[:, :, : self.length] = self.state[name].numpy()[:, :, : self.length]
            self.state[name] = self._value(grown)
        self._bind_state()

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`; a shared buffer is simply filled again from there."""
        if not self.shared and length < self.length:
            for name, value in self.state.items():
                self.state[name] = self._value(value.numpy()[:, :, :length].copy())
            self._bind_state()
        self.length = min(length, self.length)

    def close(self) -> None:
        """Drop the session and the state."""
        self.state.clear()
        del self.binding, self.session

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
        self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], total: int
    ) -> dict[str, NDArray[Any]]:
        count = hidden.shape[1]
        everything: dict[str, NDArray[Any]] = {
            "hidden": hidden,
            "position_ids": position_ids,
            "seqlens_k": np.array([total - 1]),
            "total_length": np.array([total]),
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

    def _value(self, array: NDArray[Any]) -> OrtValue:
        return OrtValue.ortvalue_from_numpy(array)  # on the array's own memory


def _present(name: str) -> str:
    return name.replace("past_", "present_", 1)
