"""What is taken in of a checkpoint beside its weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from edgeglm.devices.loader import load_profile
from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.prepare.intake import MAX_CONTEXT, MAX_KEYS, check_config, choose_context, key_notes
from edgeglm.export.prepare.types import Request

REQUEST = Request(DEMO, "demo", load_profile("cpu"))


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint.open(DEMO)


@pytest.mark.parametrize("positions", [128, 1 << 20])
def test_a_context_is_of_the_models_positions_or_bounded(checkpoint: Checkpoint, positions: int) -> None:
    text = {**checkpoint.config["text_config"], "max_position_embeddings": positions}
    checkpoint = replace(checkpoint, config={**checkpoint.config, "text_config": text})
    assert choose_context(REQUEST, checkpoint) == min(positions, MAX_CONTEXT)
    assert choose_context(replace(REQUEST, context=64), checkpoint) == 64
    with pytest.raises(UnsupportedError, match=rf"--context {positions + 1}: the model has {positions} pos"):
        choose_context(replace(REQUEST, context=positions + 1), checkpoint)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_part_of_the_config_that_is_no_object_is_a_line(checkpoint: Checkpoint, part: str) -> None:
    check_config(checkpoint)
    with pytest.raises(DamagedFileError, match=rf"config\.json: its {part} is no object; download it again"):
        check_config(replace(checkpoint, config={**checkpoint.config, part: []}))


def test_keys_that_say_nothing_are_named_up_to_a_number(checkpoint: Checkpoint) -> None:
    assert list(key_notes(checkpoint)) == []
    more = {f"key_{number:02}": 1 for number in range(MAX_KEYS + 3)}
    (note,) = key_notes(replace(checkpoint, config={**checkpoint.config, **more}))
    assert "does not know key_00, key_01, " in note
    assert "key_11 and 3 more, and neither does edgeglm" in note
