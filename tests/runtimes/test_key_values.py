"""Keys and values behind addresses: in plain memory, against the same in numpy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeglm.runtimes.engines.tensorrt.key_values import KeyValues

HEADS, WIDTH = 3, 4
ROW = WIDTH * 2  # bytes of a head's row in fp16


class HostMemory:
    """This process's own memory, in which a freed address is gone."""

    def __init__(self) -> None:
        self.blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def copy(self, target: int, source: int, size: int) -> None:
        assert self._holds(target, size)
        assert self._holds(source, size)
        assert target + size <= source or source + size <= target
        ctypes.memmove(target, source, size)

    def wait(self) -> None:
        pass

    def _holds(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + len(block) for start, block in self.blocks.items())


class Step:
    """Writes as an engine does: all past tokens and the new ones, into the other buffer."""

    def __init__(self, state: KeyValues) -> None:
        self.state, self.random = state, np.random.default_rng(0)
        self.want = {name: np.zeros((HEADS, 0, WIDTH), np.float16) for name in state.buffers}

    def run(self, count: int) -> None:
        for name, (now, following) in self.state.buffers.items():
            new = self.random.random((HEADS, count, WIDTH)).astype(np.float16)
            whole = np.concatenate([read(now, self.state.length), new], axis=1)
            ctypes.memmove(following, whole.tobytes(), whole.nbytes)
            self.want[name] = np.concatenate([self.want[name], new], axis=1)
        self.state.advance(count)

    def check(self, length: int) -> None:
        assert self.state.length == length
        for name, (now, _) in self.state.buffers.items():
            self.want[name] = self.want[name][:, :length]
            np.testing.assert_array_equal(read(now, length), self.want[name])


def read(address: int, length: int) -> NDArray[np.float16]:
    data = ctypes.string_at(address, HEADS * length * ROW)
    return np.frombuffer(data, np.float16).reshape(HEADS, length, WIDTH)


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory()


@pytest.fixture
def step(memory: HostMemory) -> Step:
    return Step(KeyValues(memory, {"past_key.0": (HEADS, ROW), "past_value.0": (HEADS, ROW)}, 8))


def test_tokens_are_added_step_by_step(step: Step) -> None:
    for count, length in [(5, 5), (1, 6), (2, 8)]:
        step.run(count)
        step.check(length)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_forgotten_tokens_leave_the_first_ones(step: Step, kept: int) -> None:
    step.run(5)
    step.state.truncate(kept)
    step.check(kept)
    step.run(3)
    step.check(kept + 3)


def test_more_than_there_is_cannot_be_forgotten_down_to(step: Step) -> None:
    step.run(2)
    step.state.truncate(7)
    step.check(2)


def test_room_for_more_keeps_what_is_there(step: Step, memory: HostMemory) -> None:
    step.run(7)
    step.state.reserve(20)
    step.check(7)
    step.run(13)
    step.check(20)
    assert step.state.bytes == sum(map(len, memory.blocks.values())) == 4 * HEADS * 20 * ROW


def test_less_room_changes_nothing(step: Step, memory: HostMemory) -> None:
    before = dict(step.state.buffers)
    step.state.reserve(4)
    assert step.state.buffers == before
    assert step.state.capacity == 8


def test_closing_frees_every_buffer(step: Step, memory: HostMemory) -> None:
    step.state.reserve(9)
    step.state.close()
    assert memory.blocks == {}
