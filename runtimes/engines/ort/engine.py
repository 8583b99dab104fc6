"""ONNX Runtime on the CPU: encoders, and decoders of every dialect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray
from onnxruntime import OrtValue

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.manifest import Module
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.session import MAX_LAST, Feeds, check_last
from edgeglm.runtimes.engines.ort.described import as_described
from edgeglm.runtimes.engines.ort.key_values import DTYPES, key_values
from edgeglm.runtimes.engines.ort.options import open_session, saturates, shrinking
from edgeglm.runtimes.engines.ort.rows import Rows
from edgeglm.runtimes.engines.ort.slots import SlotDecoder, slotted
from edgeglm.runtimes.engines.ort.weights import prepacked
from edgeglm.runtimes.inputs.positions import causal_mask

# How the names of inputs for keys and values begin.
STATE = ("past_", "cache_")


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
    heads = bundle.manifest.model.heads
    return as_described(path, module, lambda: Decoder(path, threads, capacity, heads=heads))


def open_slots(bundle: Bundle, module: Module, threads: int) -> SlotDecoder:
    """Open a decoder's graph for several sequences, which its manifest names. Raises DamagedFileError."""
    assert module.slots
    path, count, heads = bundle.path(module.slots.file), module.slots.count, bundle.manifest.model.heads
    return as_described(path, slotted(module), lambda: SlotDecoder(path, threads, count, heads=heads))


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


class Decoder(Rows):
    """A decoder with room for `capacity` tokens; `graph` is as `open_session` takes it.

    Its keys and values are in a form of `key_values`. A graph without the input ``logits_to_keep`` gives the last
    token's logits alone. A step is computed in pieces where the scores of its `heads` would take too much.
    """

    def __init__(self, path: Path, threads: int, capacity: int, graph: bytes | None = None, *, heads: int = 1) -> None:
        self.session = open_session(path, threads, graph=graph, is_decoder=True)
        inputs, logits = self.session.get_inputs(), self.session.get_outputs()[0]
        own = [value for value in inputs if not value.name.startswith(STATE)]
        self.inputs = {value.name: tuple(value.shape) for value in own}
        self._types = {value.name: DTYPES[value.type] for value in own}
        super().__init__(key_values(inputs, capacity), capacity, heads if "mask" in self.inputs else 0)
        self.max_last = MAX_LAST if "logits_to_keep" in self.inputs else 1
        self.vocabulary, self.dtype = logits.shape[-1], DTYPES[logits.type]
        self.binding = self.session.io_binding()
        self.logits = self._room_for(1)

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        """Return the logits of the last tokens, (last, vocabulary). Raises ValueError if they cannot be had."""
        count = hidden.shape[1]
        total = self.length + count
        check_last(last, count, self.max_last)
        self.reserve(total)
        for start, stop in self.pieces(count, last):
            logits = self._pass(hidden[:, start:stop], position_ids[..., start:stop], last if stop == count else 1)
        return logits

    def _pass(
        self,
        hidden: NDArray[np.float32],
        position_ids: NDArray[np.int64],
        last: int,
        options: onnxruntime.RunOptions | None = None,
    ) -> NDArray[np.float32]:
        count, total = hidden.shape[1], self.length + hidden.shape[1]
        if last != len(self.logits):
            self.logits = self._room_for(last)
        for name, array in self._feeds(hidden, position_ids, total, last):
            self.binding.bind_cpu_input(name, array)
        self.state.bind(self.binding, self.length, count)
        self.session.run_with_iobinding(self.binding, options)
        self.state.take(self.binding)
        self.length = total
        logits: NDArray[np.float32] = self.logits.astype(np.float32)
        return logits

    def rest(self) -> None:
        """Have the engine give back what it does not use: behind a token of a state that is nobody's."""
        own = self.state, self.length
        self.state, self.length = key_values(self.session.get_inputs(), 1), 0
        axes = self.inputs["position_ids"][0] if "position_ids" in self.inputs else 1
        hidden = np.zeros((1, 1, self.inputs["hidden"][-1]), np.float32)
        try:
            self._pass(hidden, np.zeros((axes, 1, 1), np.int64), 1, shrinking())
        finally:
            self.state, self.length = own
        self.state.rest(self.length)

    def close(self) -> None:
        """Drop the session and the state."""
        del self.binding, self.session, self.state

    def _feeds(
        self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], total: int, last: int
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the inputs beside keys and values, in the types that the graph takes."""
        everything: dict[str, ArrayLike] = {
            "hidden": hidden,
            "position_ids": position_ids,
            "seqlens_k": [total - 1],
            "total_length": [total],
            "logits_to_keep": [last],
        }
        if "mask" in self.inputs:
            mask = causal_mask(hidden.shape[1], total)
            everything["mask"] = mask.reshape(mask.shape[-len(self.inputs["mask"]) :])
        for name, dtype in self._types.items():
            yield name, np.ascontiguousarray(everything[name], dtype)

    def _room_for(self, last: int) -> NDArray[Any]:
        """Return where a step leaves the logits of so many tokens; they are the first output, as `Joined` expects."""
        logits = np.zeros((1, last, self.vocabulary), self.dtype)
        self.binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(logits))
        room: NDArray[Any] = logits[0]
        return room
