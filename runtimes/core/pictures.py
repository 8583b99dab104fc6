"""Encode the pictures of prompts that were not encoded lately.

The vision module is loaded for that. It stays loaded if it was loaded beside the decoder: then there is room for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.errors import DamagedFileError
from edgeglm.manifest import Module
from edgeglm.memory import current_rss
from edgeglm.runtimes.core.costs import Costs
from edgeglm.runtimes.core.features import Features
from edgeglm.runtimes.core.held import HeldEncoder
from edgeglm.runtimes.core.prefixes import Prefixes
from edgeglm.runtimes.core.prompt import FeaturesKey, Picture
from edgeglm.runtimes.core.session import EncoderSession, Sessions
from edgeglm.runtimes.core.window import Window
from edgeglm.runtimes.inputs.image import Source, hash_picture, picture_bytes, picture_name, squeezed, to_patches
from edgeglm.runtimes.inputs.masks import Mask, hash_masked, open_masked
from edgeglm.runtimes.inputs.positions import Grid

# Of masked pictures whose hashes are remembered.
MAX_DIGESTS = 256


class PictureEncoder:
    """Encodes pictures with a bundle's vision module.

    Args:
        bundle: Whose hashes were checked.
        window: Knows how many pictures the budget has room for.
        costs: Gets the phases, the module's stays, and notes on pictures.
        sessions: Opens the module.
        threads: Of its engine.
        max_ram: The budget in bytes, if there is one.
        prefixes: Of the bundle in the store, beside which features are kept.
        masks: Regions that are blanked.

    Attributes:
        held: The vision module, where it stays.
        spare: Returns the bytes of the budget that nothing else takes, if there is a budget.
        is_decoder_loaded: Returns whether the decoder is in memory, so that the vision module may stay.
        between: Is called before each picture is read, and encoded; what it raises ends the request.
    """

    def __init__(  # noqa: PLR0913 (the runner's own parts)
        self,
        bundle: Bundle,
        window: Window,
        costs: Costs,
        sessions: Sessions,
        threads: int,
        max_ram: int | None,
        prefixes: Prefixes,
        masks: Sequence[Mask] = (),
    ) -> None:
        self.bundle, self.window, self.costs = bundle, window, costs
        self.sessions, self.threads, self.max_ram, self.masks = sessions, threads, max_ram, tuple(masks)
        self.held = HeldEncoder()
        self.spare: Callable[[], int | None] = lambda: window.spare
        self.is_decoder_loaded: Callable[[], bool] = lambda: False
        self.between: Callable[[], object] = lambda: None
        self._features = Features(prefixes, bundle.manifest.model.hidden_size, window.spare)
        self._digests = dict[bytes, bytes]()  # of masked pixels, by that of the file's bytes
        self._held = dict[FeaturesKey, NDArray[np.float32]]()
        self._ahead = dict[FeaturesKey, NDArray[np.float32]]()

    def beside(self, costs: Costs) -> PictureEncoder:
        """Return an encoder of the same pictures for a request of other costs."""
        encoder = copy(self)
        encoder.costs, encoder._ahead = costs, {}
        return encoder

    def hold(self, pictures: Sequence[Picture]) -> None:
        """Encode pictures, and have their features at hand until the next call. Raises as `features`."""
        by_key = {picture.key: picture for picture in pictures}
        self.held.release()
        self._held = {}
        self._held = dict(zip(by_key, self.features(list(by_key.values())), strict=True))

    def has_room(self) -> bool:
        """Return whether the vision module may be in memory beside the decoder with a whole window."""
        spare = self.spare()
        if spare is None or self.window.counts_both or self.held.taken:
            return True
        return self.held.nbytes is not None and self.held.nbytes <= spare

    @property
    def beyond(self) -> int:
        """Bytes that the vision module takes now beyond the predicted peak."""
        return 0 if self.window.counts_both else self.held.taken

    def encode_ahead(self, pictures: Sequence[Picture], wait: Callable[[Callable[[], bool]], object]) -> None:
        """Encode several pictures one at a time for the next `features`; with slots, others go on between two of them.

        A vision module that may not stay is opened for each: nobody else could use its memory meanwhile. Raises as
        `features`.

        Args:
            pictures: Of a prompt; a single one is left to `features`.
            wait: Returns as soon as its argument is true, and lets others go on until then.
        """
        by_key = {picture.key: picture for picture in pictures}
        for number, (key, picture) in enumerate(by_key.items() if len(by_key) > 1 else ()):
            if number:
                wait(partial(next, iter([False]), True))  # once
            ahead, self._ahead = self._ahead, {}
            self._ahead = {**ahead, key: self.features([picture])[0]}

    def features(self, pictures: Sequence[Picture]) -> list[NDArray[np.float32]]:
        """Return the features of each picture, (tokens, hidden).

        Raises:
            UsageError: A picture cannot be read.
            BudgetError: They take more than is left.
            DamagedFileError: The vision module is missing, or another one by now.
        """
        encoded, new = {**self._held, **self._ahead}, dict[FeaturesKey, Picture]()
        self._ahead = {}
        for picture in pictures:
            if picture.key in encoded or picture.key in new:
                continue
            if (features := self._features.find(picture)) is None:
                new[picture.key] = picture
            else:
                encoded[picture.key] = features
        for picture, features in zip(new.values(), self._encode(list(new.values())), strict=True):
            encoded[picture.key] = features
            self._features.add(picture, features)
        return [encoded[picture.key] for picture in pictures]

    def clear(self) -> None:
        """Forget what was encoded and is in memory, and release the vision module."""
        self._features.clear()
        self.held.release()

    def keep(self) -> None:
        """Keep in the store what was encoded, beside what comes next."""
        self._features.keep()

    def close(self) -> None:
        """Release the vision module, and wait until all is kept."""
        self.held.release()
        self._features.finish()

    def digest(self, source: Source) -> bytes:
        """Return the hash of what is seen of a picture: its bytes, or its pixels without those that are masked.

        Raises:
            UsageError: It cannot be read, or a mask is not within it.
            BudgetError: There is no room to decode it.
        """
        digest = hash_picture(source)
        if not self.masks:
            return digest
        if digest not in self._digests:
            if len(self._digests) >= MAX_DIGESTS:
                self._digests.clear()
            self._digests[digest] = hash_masked(source, self.masks, self._room())
        return self._digests[digest]

    def _encode(self, pictures: Sequence[Picture]) -> list[NDArray[np.float32]]:
        if not pictures:
            return []
        with self.costs.phase("read image"):  # first: one that cannot be decoded costs no loading
            patches = [self._read(picture, len(pictures)) for picture in pictures]
        if (module := self.bundle.encoder("image")) is None:
            raise DamagedFileError(self.bundle.folder, "has no vision module", "export the bundle again")
        encoded = dict[int, NDArray[np.float32]]()
        for grid in dict.fromkeys(picture.vision.grid for picture in pictures):
            with self._encoder(module, grid) as encoder:
                for index, picture in enumerate(pictures):
                    if picture.vision.grid == grid:
                        self.between()
                        with self.costs.phase("encode image"):
                            features = encoder.run({"pixel_values": patches[index]})["features"]
                            encoded[index] = features.astype(np.float32)
        self.bundle.check(module.name)  # whose weights were mapped
        return [encoded[index] for index in range(len(pictures))]

    @contextmanager
    def _encoder(self, module: Module, grid: Grid) -> Iterator[EncoderSession]:
        """Return the vision module: the one that is held, or one that is loaded now, and then held if it may stay."""
        size, before = self.bundle.manifest.module_bytes(module), current_rss()
        with ExitStack() as stay:
            if held := self.held.take(grid, stay):
                self.bundle.check(module.name)  # before it runs: a map of a file that has shrunk ends the process
            encoder = held or stay.enter_context(self.costs.loaded(module, size, partial(self._open, grid)))
            yield encoder
            if not held:
                self.held.nbytes = max(size, current_rss() - before)
            if self.is_decoder_loaded() and self.has_room():
                self.held.hold(grid, encoder, stay.pop_all())

    def _open(self, grid: Grid, module: Module) -> EncoderSession:
        return self.sessions.open_encoder(self.bundle, module.for_grid(grid), self.threads)

    def _read(self, picture: Picture, count: int) -> NDArray[np.float32]:
        """Return the patches of one of `count` pictures, all of which are in memory when the vision module is."""
        self.between()
        self.window.check_pictures(count, picture_bytes(picture.vision))
        image = open_masked(picture.source, self.masks, self._room())
        if note := squeezed(image, picture.vision):
            self.costs.notes.append(f"{picture_name(picture.source)}: {note}")
        return to_patches(image, picture.vision)

    def _room(self) -> int | None:
        """Return the bytes that are left of the budget, if there is one."""
        return None if self.max_ram is None else self.max_ram - current_rss()
