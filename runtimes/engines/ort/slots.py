"""A decoder for several sequences at once: one step computes what each of them has waiting, by the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnxruntime import RunOptions

from edgeglm.contract import COUNTS, slot_name
from edgeglm.manifest import Module, Tensor
from edgeglm.runtimes.core.session import MAX_LAST, Asked, check_last
from edgeglm.runtimes.engines.ort.key_values import DTYPES, Cache
from edgeglm.runtimes.engines.ort.options import open_session, shrinking
from edgeglm.runtimes.engines.ort.rows import Rows
from edgeglm.runtimes.inputs.positions import causal_mask

HIDDEN, LOGITS, CACHE = "hidden", "logits", "cache_"


def slotted(module: Module) -> Module:
    """Return a decoder as its graph for several sequences is described: every slot has what the module has."""
    assert module.slots

    def of_each(tensors: tuple[Tensor, ...], shared: str) -> tuple[Tensor, ...]:
        own = [tensor for tensor in tensors if tensor.name != shared]
        names = [(tensor, slot_name(tensor.name, slot)) for tensor in own for slot in range(count)]
        copies = [msgspec.structs.replace(tensor, name=name) for tensor, name in names]
        return (*(tensor for tensor in tensors if tensor.name == shared), *copies)

    count = module.slots.count
    inputs = (*of_each(module.inputs, HIDDEN), Tensor(COUNTS, "int64", (count,)))
    return msgspec.structs.replace(
        module, file=module.slots.file, inputs=inputs, outputs=of_each(module.outputs, LOGITS)
    )


class Slot(Rows):
    """A sequence of a decoder for several: the session of one request.

    Attributes:
        compute: Computes a step: at once and alone, unless whoever shares steps takes it over.
        buffers: How often it had others.
    """

    max_last = MAX_LAST

    def __init__(self, state: Cache, heads: int, compute: Callable[[Asked], NDArray[np.float32]]) -> None:
        super().__init__(state, 1, heads)
        self.cache, self.compute, self.buffers = state, compute, 0

    def reserve(self, capacity: int) -> None:
        """Make room for more tokens."""
        self.buffers += capacity > self.capacity
        super().reserve(capacity)

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        """Return the logits of the last tokens, (last, vocabulary). Raises ValueError if they cannot be had."""
        count = hidden.shape[1]
        check_last(last, count, self.max_last)
        for start, stop in self.pieces(count, last):
            piece = hidden[:, start:stop], position_ids[..., start:stop]
            logits = self.compute(Asked(*piece, last if stop == count else 1))
        return logits

    def rest(self) -> None:
        """Do nothing: `SlotDecoder.rest` does it for all slots."""

    def close(self) -> None:
        """Give the buffers back."""
        self.length, self.capacity, self.buffers = 0, 1, self.buffers + 1
        self.cache.shrink()


class SlotDecoder:
    """A decoder for `count` sequences; `graph` is as `open_session` takes it.

    Attributes:
        count: The number of sequences.
    """

    def __init__(self, path: Path, threads: int, count: int, graph: bytes | None = None, *, heads: int = 1) -> None:
        self.session = open_session(path, threads, graph=graph, is_decoder=True)
        self.count, self.heads = count, heads
        inputs = {value.name: value for value in self.session.get_inputs()}
        logits = self.session.get_outputs()[0]
        self.vocabulary, self.width = logits.shape[-1], inputs[HIDDEN].shape[-1]
        self._inputs = {name: value for name, value in inputs.items() if not name.startswith(CACHE)}
        self._slots = [self._empty(index) for index in range(count)]
        self._binding = self.session.io_binding()
        self._idle = dict[int, int]()  # buffers of the slots that are bound without a token

    def slot(self, index: int, capacity: int) -> Slot:
        """Return one of the sequences, with room for `capacity` tokens."""
        self._slots[index].reserve(capacity)
        return self._slots[index]

    def step(self, asked: Mapping[int, Asked], options: RunOptions | None = None) -> dict[int, NDArray[np.float32]]:
        """Return the logits (last, vocabulary) of each slot that is asked for some."""
        hidden = [one.hidden for _, one in sorted(asked.items())]
        counts = np.array([asked[slot].count if slot in asked else 0 for slot in range(self.count)])
        bounds = np.cumsum([asked[slot].last if slot in asked else 0 for slot in range(self.count)])
        logits = np.empty((1, int(bounds[-1]), self.vocabulary), np.float32)
        self._feed(HIDDEN, np.concatenate(hidden, axis=1))
        self._feed(COUNTS, counts)
        self._binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for slot in range(self.count):
            self._bind(slot, asked.get(slot))
        self.session.run_with_iobinding(self._binding, options)
        for slot, one in asked.items():
            self._slots[slot].length += one.count
        return {slot: logits[0, bounds[slot] - one.last : bounds[slot]] for slot, one in asked.items()}

    def rest(self) -> None:
        """Have the engine give back what it does not use: behind a token of a slot that is nobody's."""
        own, self._slots[0] = self._slots[0], self._empty(0)
        token = Asked(np.zeros((1, 1, self.width), np.float32), np.zeros((self._axes(0), 1, 1), np.int64), 1)
        try:
            self.step({0: token}, shrinking())
        finally:
            self._slots[0] = own
        for slot in self._slots:
            slot.cache.rest(slot.length)

    def close(self) -> None:
        """Drop the session and all states."""
        self._slots.clear()
        del self._binding, self.session

    def _bind(self, slot: int, asked: Asked | None) -> None:
        """Bind what a step reads and writes of a slot; one without a token shows the graph a single row."""
        rows = self._slots[slot]
        if asked is None:
            if self._idle.get(slot) != rows.buffers:
                self._feeds(slot, np.empty((self._axes(slot), 1, 0), np.int64), 1, 0)
                rows.cache.bind(self._binding, 0, 0, least=1)
                self._idle[slot] = rows.buffers
            return
        self._idle.pop(slot, None)
        total = rows.length + asked.count
        rows.reserve(total)
        self._feeds(slot, asked.position_ids, total, asked.last)
        rows.cache.bind(self._binding, rows.length, asked.count)

    def _feeds(self, slot: int, position_ids: NDArray[np.int64], total: int, last: int) -> None:
        count = position_ids.shape[-1]
        mask = causal_mask(count, total)[0] if count else np.empty((1, 0, total), np.float32)
        for name, array in (("position_ids", position_ids), ("mask", mask), ("logits_to_keep", np.array([last]))):
            self._feed(slot_name(name, slot), array)

    def _feed(self, name: str, array: NDArray[Any]) -> None:
        if name in self._inputs:
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array, DTYPES[self._inputs[name].type]))

    def _axes(self, slot: int) -> int:
        return int(self._inputs[slot_name("position_ids", slot)].shape[0])

    def _empty(self, slot: int) -> Slot:
        own = {value.name: value for value in self.session.get_inputs() if value.name.startswith(CACHE)}
        state = Cache({name: value for name, value in own.items() if name.endswith(slot_name("", slot))}, 1)
        return Slot(state, self.heads, lambda asked: self.step({slot: asked})[slot])
