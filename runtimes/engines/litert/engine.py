"""LiteRT on the CPU: encoders and decoders in TFLite files, of which a large module has several in a row.

Keys and values have the length that the decoder was exported for, whatever a conversation takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.errors import BudgetError
from edgeglm.manifest import Module
from edgeglm.runtimes.core.session import Feeds, LastLogitsOnly, check_last
from edgeglm.runtimes.engines.litert.file import DECODE, STATE, File
from edgeglm.runtimes.engines.litert.file import version as library_version
from edgeglm.runtimes.engines.litert.weights import litert_files

# So many tokens, such as those that a grammar forces, take less one by one than a padded chunk does.
SINGLE = 8
ENCODE, PREFILL = "encode", "prefill_"
# No machine was at hand that could show what LiteRT makes of it.
NO_DISPATCH = "what is compiled for the NPU is for LiteRT in an application, and this runner does not load it"


def available(module: Module, inputs: int = 1) -> bool:
    """Return True: where LiteRT is not installed, opening the module says so."""
    return True


def place(module: Module, inputs: int) -> str:
    """Return the CPU, and why it is not the NPU for what was compiled for one."""
    return ENGINES["litert"].place + (f": {NO_DISPATCH}" if module.compiled else "")


def note(module: Module) -> str | None:
    """Return that a module which was compiled for an NPU runs on the CPU."""
    return f"the CPU: {NO_DISPATCH}" if module.compiled else None


def version() -> str:
    """Return LiteRT's version."""
    return library_version()


def open_encoder(bundle: Bundle, module: Module, threads: int) -> Encoder:
    """Open a module without a state. Raises as `File`."""
    return Encoder(litert_files(bundle, module, threads))


def open_decoder(bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool) -> Decoder:
    """Open a decoder, whose packed weights are always in a file. Raises as `File`."""
    return Decoder(litert_files(bundle, module, threads), capacity)


class Encoder:
    """A module without a state, whose files are run one after the other."""

    def __init__(self, files: Sequence[File]) -> None:
        self.files = files

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        values = dict(feeds)
        for file in self.files:
            values = file.run(ENCODE, values)
        return values

    def close(self) -> None:
        """Give its memory back."""
        _close(self.files)


class Decoder(LastLogitsOnly):
    """A decoder; its capacity is the context that it was exported for."""

    def __init__(self, files: Sequence[File], capacity: int) -> None:
        self.files, self.length = files, 0
        self.state_bytes = sum(file.make_state() for file in files)
        first = files[0]
        self.prefill = next(name for name in first.signatures if name.startswith(PREFILL))
        self.chunk = int(self.prefill.removeprefix(PREFILL))
        self.capacity = next(shape[2] for name, (shape, _) in first.inputs(DECODE).items() if name.startswith(STATE))
        self.reserve(capacity)

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        """Return the logits (1, vocabulary) of the last token: chunks, the last one padded, or one token at a time.

        Padding is written behind the tokens, where the next step overwrites it; where there is no room, none is used.

        Args:
            hidden: The tokens' embeddings (1, count, channels).
            position_ids: (axes, 1, count).
            last: How many tokens' logits: 1.

        Raises:
            BudgetError: There is no room for the tokens.
            ValueError: More logits are asked for.
        """
        count = hidden.shape[1]
        check_last(last, count, self.max_last)
        self.reserve(self.length + count)
        done = 0
        while done < count:
            fits = count - done > SINGLE and self.length + self.chunk <= self.capacity
            take = min(count - done, self.chunk) if fits else 1
            logits = self._run(hidden[:, done : done + take], position_ids[:, :, done : done + take], padded=fits)
            self.length += take
            done += take
        return logits

    def _run(self, hidden: NDArray[Any], positions: NDArray[Any], *, padded: bool) -> NDArray[np.float32]:
        count = hidden.shape[1]
        size = self.chunk if padded else count
        values: dict[str, NDArray[Any]] = {
            "hidden": _padded(hidden, 1, size),
            "position_ids": _padded(positions, 2, size),
            "start": np.array([self.length]),
            "last": np.array([count - 1]),
        }
        for file in self.files:
            values |= file.run(self.prefill if padded else DECODE, values)
        return values["logits"].reshape(1, -1)

    def reserve(self, capacity: int) -> None:
        """Check that the tokens fit; the buffers never grow. Raises BudgetError."""
        if capacity > self.capacity:
            raise BudgetError(
                f"{capacity} tokens", f"the decoder has room for {self.capacity}", "export it for a longer --context"
            )

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`: what is behind them is hidden until it is overwritten."""
        self.length = min(length, self.length)

    def close(self) -> None:
        """Give its memory back."""
        _close(self.files)


def _padded(array: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    widths = [(0, size - length if index == axis else 0) for index, length in enumerate(array.shape)]
    return np.pad(array, widths)


def _close(files: Sequence[File]) -> None:
    for file in files:
        file.close()
