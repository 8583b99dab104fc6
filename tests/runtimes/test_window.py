"""What fits, by the bundle's own prediction: 1 GiB at 1,024 tokens, 2 GiB at 4,096."""

from __future__ import annotations

import msgspec
import pytest

from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.manifest import Manifest, Slots
from edgeglm.runtimes.core.window import Window
from tests.bundles import sample_manifest

GIB = 1 << 30


def test_the_window_is_the_bundles_the_users_or_what_the_budget_has_room_for() -> None:
    manifest = sample_manifest()
    assert Window(manifest, None, None).tokens == 4096
    assert Window(manifest, 1000, None).tokens == 1000
    assert Window(manifest, None, GIB).tokens == 1024
    assert Window(manifest, None, int(1.5 * GIB)).tokens == 2560  # half way between what is predicted
    assert Window(manifest, 300, GIB).tokens == 300


def test_a_buffer_has_whole_buckets_up_to_the_window() -> None:
    window = Window(sample_manifest(), 1000, None)
    assert window.capacity(100, 28) == 256
    assert window.capacity(200, 57) == 512
    assert window.capacity(900, 100) == 1000


@pytest.mark.parametrize(
    ("context", "max_ram", "line"),
    [
        (4097, None, "--context 4097: is more than this bundle has; give at most 4096"),
        (None, GIB - (1 << 20), "--max-ram: 1023MiB is too little for this bundle; give at least 1GiB"),
        (4096, GIB, "--max-ram: 4096 tokens take 2GiB, and there is 1GiB; 1024 tokens fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(context: int | None, max_ram: int | None, line: str) -> None:
    with pytest.raises(BudgetError) as error:
        Window(sample_manifest(), context, max_ram)
    assert str(error.value) == line


def test_a_prompt_beyond_the_window_is_refused_with_what_fits() -> None:
    window = Window(sample_manifest(), 1000, None)
    with pytest.raises(
        BudgetError, match=r"900 tokens of prompt and 101 of answer .* 1000 that fit; ask for at most 100"
    ):
        window.capacity(900, 101)
    with pytest.raises(BudgetError, match=r"shorten the prompt"):
        window.capacity(1000, 1)


def test_more_pictures_than_the_budget_has_room_for_are_refused() -> None:
    window = Window(sample_manifest(), None, GIB)
    window.check_pictures(1, 1 << 20)
    with pytest.raises(BudgetError, match="1GiB is too little for 3 images in one prompt; give at least "):
        window.check_pictures(3, 8 << 20)
    Window(sample_manifest(), None, None).check_pictures(100, GIB)


def side_by_side(fixed: int | None, token: int | None) -> Manifest:
    """A bundle that says what its sequences take."""
    manifest = sample_manifest()
    slots = Slots(file="decoder/slots.onnx", count=4, rss_bytes=fixed, token_rss_bytes=token)
    modules = [
        msgspec.structs.replace(module, slots=slots) if module.name == "decoder" else module
        for module in manifest.modules
    ]
    return msgspec.structs.replace(manifest, modules=tuple(modules))


def test_sequences_side_by_side_share_what_the_budget_leaves() -> None:
    window = Window(side_by_side(GIB, 1 << 20), None, 3 * GIB, is_shared=True)
    assert (window.tokens, window.room(3 * GIB), window.room(2 * GIB)) == (2048, 2048, 2048)
    window = Window(side_by_side(GIB, 1 << 18), None, 3 * GIB, is_shared=True)
    assert (window.tokens, window.room(3 * GIB)) == (4096, 8192)
    assert (window.peak(), window.peak(8192)) == (2 * GIB, 3 * GIB)
    assert window.spare == 0
    with pytest.raises(BudgetError, match=r"1GiB is too little for this bundle; give at least 1\.\d+GiB"):
        Window(side_by_side(GIB, 1 << 20), None, GIB, is_shared=True)


def test_a_bundle_that_does_not_say_what_its_sequences_take_has_no_pool() -> None:
    Window(side_by_side(None, None), None, None, is_shared=True)
    with pytest.raises(UnsupportedError, match="export it again"):
        Window(side_by_side(None, None), None, 3 * GIB, is_shared=True)
