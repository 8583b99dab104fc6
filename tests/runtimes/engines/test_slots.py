"""A decoder for several sequences: each has what it has alone, whatever the others do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeglm.bundle import Bundle, load_bundle
from edgeglm.errors import DamagedFileError
from edgeglm.memory import current_rss
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.core.sessions import open_slots
from edgeglm.runtimes.engines.ort.engine import Decoder
from edgeglm.runtimes.engines.ort.rows import Rows
from edgeglm.runtimes.engines.ort.slots import SlotDecoder

CAPACITY, MANY = 300, 20_000
FILLINGS = ((5, 0, 0, 0), (0, 7, 0, 2), (1, 1, 0, 30), (1, 0, 4, 1), (0, 1, 1, 1), (256, 1, 1, 1))


@pytest.fixture(scope="module")
def bundle(exact: Path) -> Bundle:
    return load_bundle(exact)


@pytest.fixture
def several(bundle: Bundle) -> Iterator[SlotDecoder]:
    assert bundle.decoder.slots
    decoder = SlotDecoder(bundle.path(bundle.decoder.slots.file), 1, bundle.decoder.slots.count)
    yield decoder
    decoder.close()


def asked(decoder: SlotDecoder, start: int, count: int, last: int = 1, seed: int = 0) -> Asked:
    """Random embeddings of some tokens behind others."""
    hidden = np.random.default_rng(seed).standard_normal((1, count, decoder.width), np.float32)
    return Asked(hidden, np.broadcast_to(np.arange(start, start + count), (3, 1, count)), last)


def test_every_sequence_gets_the_logits_that_it_gets_alone(bundle: Bundle, several: SlotDecoder) -> None:
    slots = [several.slot(index, 1) for index in range(several.count)]
    fed: list[list[Asked]] = [[] for _ in slots]
    for seed, counts in enumerate(FILLINGS):
        step = {}
        for index, count in enumerate(counts):
            if count:
                step[index] = asked(several, slots[index].length, count, min(count, 3), seed * 10 + index)
                fed[index].append(step[index])
        together = several.step(step)
        assert together.keys() == step.keys()
        for index, logits in together.items():
            np.testing.assert_array_equal(logits, _alone(bundle, fed[index]))
    assert [slot.length for slot in slots] == [sum(column) for column in zip(*FILLINGS, strict=True)]


def _alone(bundle: Bundle, fed: list[Asked]) -> NDArray[np.float32]:
    decoder = Decoder(bundle.path(bundle.decoder.file), 1, CAPACITY)
    return [decoder.step(one.hidden, one.position_ids, one.last) for one in fed][-1]


def test_a_sequence_goes_on_in_another_slot_from_its_rows(several: SlotDecoder) -> None:
    first, second = several.slot(0, CAPACITY), several.slot(3, CAPACITY)
    assert isinstance(first, Rows)
    several.step({0: asked(several, 0, 20), 3: asked(several, 0, 9, seed=1)})
    rows = first.read_rows(0, 20)
    expected = several.step({0: asked(several, 20, 1, seed=2)})[0]
    second.truncate(0)
    second.write_rows(0, rows)
    np.testing.assert_array_equal(several.step({3: asked(several, 20, 1, seed=2)})[3], expected)


def test_a_closed_slot_gives_its_buffers_back_and_begins_anew(several: SlotDecoder) -> None:
    slot = several.slot(1, CAPACITY)
    before = slot.step(*_parts(asked(several, 0, 5)))
    assert slot.state_bytes == CAPACITY * slot.row_bytes
    slot.close()
    assert (slot.length, slot.state_bytes) == (0, slot.row_bytes)
    several.step({0: asked(several, 0, 4)})  # beside which it is idle
    np.testing.assert_array_equal(several.slot(1, 5).step(*_parts(asked(several, 0, 5))), before)


def test_at_rest_the_memory_of_forgotten_tokens_goes_back_and_other_slots_keep_theirs(several: SlotDecoder) -> None:
    kept, slot = several.slot(0, CAPACITY), several.slot(2, MANY)
    assert isinstance(slot, Rows)
    want = [several.step({0: asked(several, 0, 20)})[0], kept.step(*_parts(asked(several, 20, 1)))]
    # What other tests left running takes memory meanwhile, or gives it back: one quiet moment is enough.
    assert any(_comes_back(several, slot) for _ in range(3))
    kept.truncate(20)
    np.testing.assert_array_equal(kept.step(*_parts(asked(several, 20, 1))), want[1])
    np.testing.assert_array_equal(slot.step(*_parts(asked(several, 0, 20))), want[0])


def _comes_back(several: SlotDecoder, slot: Rows) -> bool:
    """Return whether most of the memory that a slot's tokens take is the system's again once they are forgotten."""
    slot.truncate(0)
    several.rest()  # so that what other tests left does not count
    before = current_rss()
    slot.write_rows(0, np.ones((MANY, slot.row_bytes), np.uint8))
    taken = current_rss() - before
    slot.truncate(0)
    several.rest()
    return 4 * (current_rss() - before) < taken > 8 << 20


def _parts(one: Asked) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    return one.hidden, one.position_ids, one.last


def test_the_engine_keeps_no_plan_of_buffers_for_each_shape_of_a_step_and_no_thread_busy(
    bundle: Bundle, several: SlotDecoder
) -> None:
    alone = Decoder(bundle.path(bundle.decoder.file), 1, CAPACITY)
    options = [decoder.session.get_session_options() for decoder in (several, alone)]
    assert not any(option.enable_mem_pattern for option in options)
    # Nor do its threads wait for the next step, at a core's cost each.
    assert {option.get_session_config_entry("session.force_spinning_stop") for option in options} == {"1"}


def test_logits_that_cannot_be_had_are_refused(several: SlotDecoder) -> None:
    with pytest.raises(ValueError, match="logits of 2 of 1 tokens"):
        several.slot(0, 4).step(*_parts(asked(several, 0, 1, last=2)))


def test_a_graph_that_is_no_decoder_for_so_many_is_refused(bundle: Bundle) -> None:
    assert bundle.decoder.slots
    module = msgspec.structs.replace(bundle.decoder, slots=msgspec.structs.replace(bundle.decoder.slots, count=3))
    with pytest.raises(DamagedFileError, match=r"slots\.onnx"):
        open_slots(bundle, module, 1)
