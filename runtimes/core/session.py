"""Interface of an engine for the runner: the functions of its ``engine.py``, and the sessions that they open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.manifest import Module

Feeds = Mapping[str, NDArray[Any]]
# The most tokens of a step whose logits a decoder gives, where its graph can be asked for more than the last one's.
MAX_LAST = 16


@dataclass(frozen=True)
class Asked:
    """Arguments of a decoder's step: embeddings (1, n, hidden), positions (axes, 1, n), how many last logits."""

    hidden: NDArray[np.float32]
    position_ids: NDArray[np.int64]
    last: int

    @property
    def count(self) -> int:
        """The number of tokens."""
        return int(self.hidden.shape[1])


class EncoderSession(Protocol):
    """A loaded module without a state, such as the vision tower."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; inputs are converted to the types that the module takes."""

    def close(self) -> None:
        """Give its memory back."""


class DecoderSession(Protocol):
    """A loaded decoder whose keys and values stay in the engine.

    ``state_bytes`` is what they may take. ``max_last`` is the most tokens of a step whose logits it gives, and
    ``row_bytes`` the size of a token's keys and values; 0 where the engine does not give them away.
    """

    @property
    def length(self) -> int:
        """The number of tokens in it."""

    @property
    def state_bytes(self) -> int:
        """Bytes of keys and values at its capacity."""

    @property
    def max_last(self) -> int:
        """The most tokens of a step whose logits it gives: 1, or more."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's keys and values in `read_rows`; 0 where the engine cannot."""

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        """Return the logits of the last tokens of a step, (last, vocabulary).

        Args:
            hidden: Embeddings of the n tokens that follow those in the state, (1, n, hidden).
            position_ids: Theirs, (axes, 1, n).
            last: How many tokens' logits: from 1 to n, and to `max_last`.

        Raises:
            ValueError: `last` is none of these.
        """

    def read_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a copy of the keys and values of the tokens from `start` up to `stop`: (tokens, row_bytes).

        Raises:
            ValueError: They are not all in the state, or the engine does not give them away.
        """

    def write_rows(self, start: int, rows: NDArray[np.uint8]) -> None:
        """Put rows of `read_rows` behind the first `start` tokens, (tokens, row_bytes); the state ends with them.

        Raises:
            ValueError: The state has fewer than `start` tokens, or the capacity no room.
        """

    def reserve(self, capacity: int) -> None:
        """Make room for so many tokens at least, and keep those that are in it."""

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""

    def rest(self) -> None:
        """Give back what the engine keeps for further steps; keys and values stay."""

    def close(self) -> None:
        """Give its memory back."""


class SlotSession(DecoderSession, Protocol):
    """A sequence of a decoder for several; ``compute`` is what its step is computed by, and may be replaced."""

    compute: Callable[[Asked], NDArray[np.float32]]


class SlotsSession(Protocol):
    """A loaded decoder for `count` sequences, whose steps they share."""

    count: int

    def slot(self, index: int, capacity: int) -> SlotSession:
        """Return one of the sequences, with room for `capacity` tokens."""

    def step(self, asked: Mapping[int, Asked]) -> dict[int, NDArray[np.float32]]:
        """Return the logits (last, vocabulary) of each slot that is asked for some."""

    def rest(self) -> None:
        """Give back what the engine keeps for further steps; keys and values stay."""

    def close(self) -> None:
        """Give its memory back."""


class LastLogitsOnly:
    """Part of a session whose graph gives the last token's logits, and whose engine keeps its rows to itself.

    Its buffers are those that it has from the beginning.
    """

    max_last, row_bytes = 1, 0

    def read_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Refuse: see `DecoderSession.read_rows`."""
        raise ValueError("the engine gives no keys and values away")

    def write_rows(self, start: int, rows: NDArray[np.uint8]) -> None:
        """Refuse: see `DecoderSession.write_rows`."""
        raise ValueError("the engine takes no keys and values")

    def rest(self) -> None:
        """Do nothing: see `DecoderSession.rest`."""


def check_last(last: int, count: int, most: int) -> None:
    """Raise ValueError if the logits of `last` of `count` tokens are asked for, where `most` can be had."""
    if not 1 <= last <= min(count, most):
        raise ValueError(f"logits of {last} of {count} tokens, where up to {most} can be had")


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

    def version(self) -> str:
        """Return what its results depend on beside a module's files and the processor, such as its version."""

    def open_encoder(self, bundle: Bundle, module: Module, threads: int) -> EncoderSession:
        """Open a module without a state."""

    def open_decoder(
        self, bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool
    ) -> DecoderSession:
        """Open a decoder with room for `capacity` tokens; with `low_rss`, its packed weights are in a file."""
