"""Slots of a bundle: sequences that its decoder computes together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.errors import UsageError
from edgeglm.manifest import Module
from edgeglm.runtimes.core.session import Asked, DecoderSession, Sessions
from edgeglm.runtimes.core.sessions import open_slots


class Slots(AbstractContextManager["Slots"]):
    """Sequences of a bundle's decoder, which is loaded as long as they are there: a context manager.

    Args:
        bundle: Whose hashes were checked.
        threads: Of each operator.
        count: How many are used.

    Attributes:
        openers: Each gives the session of one of them, with room for so many tokens.
        compute: Computes a step of a slot; at once and alone, until whoever shares steps sets another one.

    Raises:
        UnsupportedError: The bundle's decoder computes one sequence at a time.
        UsageError: It computes fewer than `count`.
    """

    def __init__(self, bundle: Bundle, threads: int, count: int) -> None:
        self._session = open_slots(bundle, bundle.decoder, threads)
        if count > (most := self._session.count):
            self._session.close()
            raise UsageError(f"--slots {count}", f"{bundle.folder.name} has {most}", f"give at most {most}")
        self.openers: Sequence[Callable[[Module, int], DecoderSession]] = [
            partial(self._slot, index) for index in range(count)
        ]
        self.compute: Callable[[int, Asked], NDArray[np.float32]] = self.alone

    def alone(self, slot: int, asked: Asked) -> NDArray[np.float32]:
        """Return the logits (last, vocabulary) of a step that no other sequence shares."""
        return self.step({slot: asked})[slot]

    def step(self, asked: Mapping[int, Asked]) -> dict[int, NDArray[np.float32]]:
        """Return the logits (last, vocabulary) of each slot that is asked for some."""
        return self._session.step(asked)

    def rest(self) -> None:
        """Give back what the engine keeps for further steps; keys and values stay."""
        self._session.rest()

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def _slot(self, index: int, module: Module, capacity: int) -> DecoderSession:
        slot = self._session.slot(index, capacity)
        slot.compute = lambda asked: self.compute(index, asked)
        return slot


def single(sessions: Sessions, bundle: Bundle, threads: int, low_rss: bool) -> Callable[[Module, int], DecoderSession]:
    """Return what opens a bundle's decoder for one sequence, with room for so many tokens.

    Args:
        sessions: Opens modules.
        bundle: Whose hashes were checked.
        threads: Of each operator.
        low_rss: As of `edgeglm.runtimes.core.sessions.open_decoder`.
    """

    def load(module: Module, capacity: int) -> DecoderSession:
        return sessions.open_decoder(bundle, module, threads, capacity, low_rss=low_rss)

    return load
