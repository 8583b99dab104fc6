"""A prompt's assembly: features in the places of images, and positions that go on behind what is there."""

from __future__ import annotations

import numpy as np
import pytest

from edgeglm.runtimes.core.assembly import assemble
from edgeglm.runtimes.inputs.positions import prompt_positions

IMAGE = 9
TOKENS = [1, 2, *[IMAGE] * 6, 3, *[IMAGE] * 4, 4, 5]
GRIDS = [(2, 3), (4, 1)]
MASK = [token == IMAGE for token in TOKENS]


@pytest.mark.parametrize("mrope", [True, False])
def test_text_behind_a_prompt_goes_on_counting(mrope: bool) -> None:
    text = len(TOKENS) - 2
    whole = assemble(TOKENS, MASK, GRIDS, mrope=mrope)
    begun = assemble(TOKENS[:text], MASK[:text], GRIDS, mrope=mrope).followed_by(TOKENS[text:])
    assert (begun.tokens, begun.spans) == (whole.tokens, whole.spans)
    np.testing.assert_array_equal(begun.positions, whole.positions)
    np.testing.assert_array_equal(whole.positions, prompt_positions(MASK, GRIDS if mrope else None))
    assert whole.followed_by([]) is whole


@pytest.mark.parametrize("start", [0, 2, 5, 8, 10, 13])
def test_features_take_the_places_of_what_is_not_left_out(start: int) -> None:
    random = np.random.default_rng(0)
    rows, features = random.random((len(TOKENS), 3)), [random.random((6, 3)), random.random((4, 3))]
    whole = rows.copy()
    whole[2:8], whole[9:13] = features
    assembly = assemble(TOKENS, MASK, GRIDS, mrope=True)
    hidden = rows[start:].copy()
    ahead = [array for array, (_, stop) in zip(features, assembly.spans, strict=True) if stop > start]
    assembly.place(hidden, ahead, start)
    np.testing.assert_array_equal(hidden, whole[start:])


@pytest.mark.parametrize("grids", [GRIDS[:1], [(2, 3), (2, 3)], [*GRIDS, (1, 1)]])
def test_images_that_do_not_fit_their_places_are_refused(grids: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=f"2 places for {len(grids)} images"):
        assemble(TOKENS, MASK, grids, mrope=True)
