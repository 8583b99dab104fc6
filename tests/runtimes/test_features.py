"""Features of images: what is kept is written beside what comes next, and is there when the runner closes."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from edgeglm.blocks import Blocks
from edgeglm.manifest import Vision
from edgeglm.runtimes.core import features as module
from edgeglm.runtimes.core import prefixes
from edgeglm.runtimes.core.features import Features
from edgeglm.runtimes.core.prompt import Picture
from edgeglm.runtimes.inputs.image import picture_reader

VISION = Vision(
    grid=(2, 2), patch_size=14, merge_size=2, temporal_patch_size=2, mean=(0, 0, 0), std=(1, 1, 1), image_token_id=1,
    image_start_token_id=2, image_end_token_id=3,
)  # fmt: skip


class SlowBlocks(Blocks):
    """Writes when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1 << 20, folder)
        self.go = threading.Event()

    def keep(self, head: bytes, data: memoryview, needed: Collection[str] = ()) -> bool:
        """Keep a block, late."""
        assert self.go.wait(60)
        return super().keep(head, data, needed)


class Store:
    """The prefixes of a bundle, as `Features` knows them."""

    is_on = keeps = True
    identity = b"{}"

    def __init__(self, folder: Path) -> None:
        self.blocks = SlowBlocks(folder)
        self.block = self.blocks.find

    def used(self, heads: object) -> None:
        """Do nothing."""


def picture(name: str) -> Picture:
    return Picture(Path(name), VISION, name.encode())


def test_writing_holds_nothing_up_and_is_over_at_the_end(tmp_path: Path) -> None:
    store, values = Store(tmp_path), np.arange(8, dtype=np.float32).reshape(1, 8)
    features = Features(store, 8)  # type: ignore[arg-type]
    features.add(picture("a"), values)
    features.keep()
    features.add(picture("b"), values + 1)
    assert not any(path.is_file() for path in tmp_path.iterdir())
    threading.Timer(0.1, store.blocks.go.set).start()
    features.keep()  # waits for the one before
    features.finish()
    features.keep()  # of nothing
    again = Features(store, 8)  # type: ignore[arg-type]
    for name, right in (("a", values), ("b", values + 1)):
        np.testing.assert_array_equal(again.find(picture(name)), right)
    assert again.find(picture("c")) is None


def test_what_another_decoder_of_pictures_has_read_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, values = Store(tmp_path), np.arange(8, dtype=np.float32).reshape(1, 8)
    store.blocks.go.set()
    features = Features(store, 8)  # type: ignore[arg-type]
    features.add(picture("a"), values)
    features.keep()
    features.finish()
    for reader, is_there in ((picture_reader(), True), ("Pillow 0", False)):
        monkeypatch.setattr(module, "picture_reader", lambda reader=reader: reader)
        found = Features(store, 8).find(picture("a"))  # type: ignore[arg-type]
        assert (found is not None) == is_there


def test_only_blocks_with_pictures_depend_on_what_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text, shown = [prefixes._head.__wrapped__(b"{}", "", keys) for keys in ((1, 2), (1, b"picture"))]
    assert b"Pillow" in shown
    assert b"Pillow" not in text
    monkeypatch.setattr(prefixes, "picture_reader", lambda: "Pillow 0")
    assert prefixes._head.__wrapped__(b"{}", "", (1, 2)) == text
    assert prefixes._head.__wrapped__(b"{}", "", (1, b"picture")) != shown
