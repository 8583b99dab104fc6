"""Remember the features of images: the last few in memory, and in the user's store where a runner keeps something."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Thread

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeglm.manifest import Vision
from edgeglm.runtimes.core.prefixes import Prefixes
from edgeglm.runtimes.core.prompt import FeaturesKey, Picture
from edgeglm.runtimes.inputs.image import picture_reader

LAST = 4  # images
MAX_BYTES = 64 << 20  # in memory, of all of them


class Features:
    """The features that were computed lately, (tokens, hidden) of each image.

    Args:
        prefixes: Of the bundle in the store, beside which features are kept.
        hidden: The width of a token.
        room: Bytes that they may take in memory.
    """

    def __init__(self, prefixes: Prefixes, hidden: int, room: int | None = None) -> None:
        self.prefixes, self.hidden = prefixes, hidden
        self._room = MAX_BYTES if room is None else min(MAX_BYTES, room)
        self._last = OrderedDict[FeaturesKey, NDArray[np.float32]]()
        self._unkept = dict[FeaturesKey, NDArray[np.float32]]()
        self._writer: Thread | None = None

    def find(self, picture: Picture) -> NDArray[np.float32] | None:
        """Return the features of an image that was encoded before, by this runner or by one that kept them."""
        features = self._last.get(picture.key)
        if features is None and (features := self._restored(picture)) is None:
            return None
        self._remember(picture, features)
        return features

    def add(self, picture: Picture, features: NDArray[np.float32]) -> None:
        """Remember what was computed, and have `keep` write it."""
        self._remember(picture, features)
        if self.prefixes.keeps:
            self._unkept[picture.key] = features

    def clear(self) -> None:
        """Forget the features in memory."""
        self._last.clear()

    def keep(self) -> None:
        """Begin to write to the store what is not in it: an answer does not wait for that, but the next `keep` does."""
        if self._unkept:
            self.finish()
            unkept, self._unkept = self._unkept, {}
            self._writer = Thread(target=self._write, args=(unkept,), name="features")
            self._writer.start()

    def finish(self) -> None:
        """Wait until all is written."""
        if self._writer:
            self._writer.join()
            self._writer = None

    def _write(self, unkept: Mapping[FeaturesKey, NDArray[np.float32]]) -> None:
        for key, features in unkept.items():
            self.prefixes.blocks.keep(self._head(key), np.ascontiguousarray(features).reshape(-1).view(np.uint8).data)

    def _remember(self, picture: Picture, features: NDArray[np.float32]) -> None:
        self._last[picture.key] = features
        self._last.move_to_end(picture.key)
        while len(self._last) > LAST or sum(array.nbytes for array in self._last.values()) > self._room:
            self._last.popitem(last=False)
            if not self._last:
                return

    def _restored(self, picture: Picture) -> NDArray[np.float32] | None:
        if not self.prefixes.is_on:
            return None
        head, tokens = self._head(picture.key), _tokens(picture.vision)
        block = self.prefixes.block(head)
        if block is None or len(block.file) - block.start != 4 * tokens * self.hidden:
            return None
        self.prefixes.used([head])
        stored = np.frombuffer(block.file, np.float32, offset=block.start)
        return stored.reshape(tokens, self.hidden).copy()

    def _head(self, key: FeaturesKey) -> bytes:
        digest, grid = key
        rest = msgspec.json.encode({"features": digest.hex(), "grid": grid, "read by": picture_reader()})
        return self.prefixes.identity + b"\n" + rest


def _tokens(vision: Vision) -> int:
    rows, columns = vision.grid
    return rows * columns // vision.merge_size**2
