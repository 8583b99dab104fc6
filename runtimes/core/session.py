"""Interface of an engine for the runner: the functions of its ``engine.py``, and the sessions that they open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.manifest import Module

Feeds = Mapping[str, NDArray[Any]]


class EncoderSession(Protocol):
    """A loaded module without a state, such as the vision tower."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; inputs are converted to the types that the module takes."""

    def close(self) -> None:
        """Give its memory back."""


class DecoderSession(Protocol):
    """A loaded decoder whose keys and values stay in the engine.

    ``state_bytes`` is what they may take.
    """

    @property
    def length(self) -> int:
        """The number of tokens in it."""

    @property
    def state_bytes(self) -> int:
        """Bytes of keys and values at its capacity."""

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits (vocabulary) of the last of some tokens: hidden (1, n, hidden), positions (axes, 1, n)."""

    def reserve(self, capacity: int) -> None:
        """Make room for so many tokens at least, and keep those that are in it."""

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""

    def close(self) -> None:
        """Give its memory back."""


class Sessions(Protocol):
    """The functions that open a bundle's modules: `edgeglm.runtimes.core.sessions`, or what stands in for an engine."""

    def open_encoder(self, bundle: Bundle, module: Module, threads: int) -> EncoderSession:
        """Open a module without a state."""

    def open_decoder(
        self, bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool = False
    ) -> DecoderSession:
        """Open a decoder with room for `capacity` tokens."""


class EngineModule(Protocol):
    """The functions of ``runtimes/engines/NAME/engine.py``, where what is heavy is imported only once it is needed."""

    def available(self, module: Module, inputs: int = 1) -> bool:
        """Return whether the engine runs a module of its own here, for so many inputs in bounded time."""

    def place(self, module: Module, inputs: int) -> str:
        """Return what runs a module of this engine here for so many inputs, in words."""

    def note(self, module: Module) -> str | None:
        """Return where a module of this engine runs here, if that is not what its name says."""

    def open_encoder(self, bundle: Bundle, module: Module, threads: int) -> EncoderSession:
        """Open a module without a state."""

    def open_decoder(
        self, bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool
    ) -> DecoderSession:
        """Open a decoder with room for `capacity` tokens; with `low_rss`, its packed weights are in a file."""
