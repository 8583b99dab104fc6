"""Compute a runner's window: the least of the bundle's context, ``--context``, and what ``--max-ram`` has room for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.manifest import Manifest
from edgeglm.units import format_size

# A key/value buffer has a multiple of this many rows.
BUCKET = 256
# What the attention scores of a pass may take. More leave the processor's cache, and are slower besides.
SCORES_BYTES, LEAST_PIECE = 8 << 20, 32


class Window:
    """The most tokens of prompt and answer together, in ``tokens``.

    Args:
        manifest: The bundle's, with its predicted peaks.
        context: As asked for; the bundle's most if None.
        max_ram: The budget in bytes, if there is one.
        is_shared: Whether sequences are computed side by side, in one pool of keys and values.

    Raises:
        BudgetError: The context is longer than the bundle's, or the budget has no room for it.
        UnsupportedError: There is a budget, and the bundle does not say what its sequences take.
    """

    def __init__(
        self, manifest: Manifest, context: int | None, max_ram: int | None, *, is_shared: bool = False
    ) -> None:
        longest, self._token_bytes = manifest.model.max_positions, 0
        self._peaks: Mapping[int, int] = manifest.predicted.device_peak_rss_bytes
        if is_shared and max_ram is not None:
            base, self._token_bytes = _sequences(manifest)
            self._peaks = {0: base, longest: base + self._token_bytes * longest}
        if context and context > longest:
            raise BudgetError(f"--context {context}", "is more than this bundle has", f"give at most {longest}")
        self.tokens, self._max_ram = context or longest, max_ram
        if max_ram is not None:
            self._restrict(context, longest, max_ram)

    def capacity(self, prompt: int, answer: int) -> int:
        """Return the rows of a buffer for so many tokens of prompt and answer.

        Raises:
            BudgetError: They are more than the window; the message says what fits.
        """
        if prompt + answer > self.tokens:
            why = f"{prompt} tokens of prompt and {answer} of answer are more than the {self.tokens} that fit"
            left = self.tokens - prompt
            raise BudgetError("context", why, f"ask for at most {left}" if left > 0 else "shorten the prompt")
        return capacity_for(prompt + answer, self.tokens)

    @property
    def counts_both(self) -> bool:
        """Whether the predicted peak is that of the decoder and an encoder, and not of the larger of them."""
        return self._token_bytes > 0

    @property
    def spare(self) -> int | None:
        """Bytes of the budget beyond the predicted peak of a whole window and beyond a pool, if there is a budget."""
        if self._max_ram is None or self._token_bytes:
            return None if self._max_ram is None else 0
        return max(0, self._max_ram - self._peak(self.tokens))

    def peak(self, tokens: int = 0) -> int:
        """Return the predicted peak in bytes with a whole window, or with more tokens in a pool."""
        return self._peak(self.tokens) + self._token_bytes * max(0, tokens - self.tokens)

    def room(self, budget: int) -> int:
        """Return how many tokens all sequences together may have in a budget of bytes."""
        beyond = (budget - self._peak(self.tokens)) // self._token_bytes if self._token_bytes else 0
        return self.tokens + max(0, beyond)

    def check_pictures(self, count: int, nbytes: int) -> None:
        """Refuse more pictures in a prompt than the budget has room for; the prediction is of one.

        Raises:
            BudgetError: They are too many.
        """
        needed = self._peak(1) + (count - 1) * nbytes
        if self._max_ram is not None and needed > self._max_ram:
            why = f"{format_size(self._max_ram)} is too little for {count} images in one prompt"
            raise BudgetError("--max-ram", why, f"give at least {format_size(needed)}, or fewer images")

    def _restrict(self, context: int | None, longest: int, max_ram: int) -> None:
        fitting = [count for count in (*range(BUCKET, longest, BUCKET), longest) if self._peak(count) <= max_ram]
        if not fitting:
            smallest = self._peak(min(BUCKET, longest))
            why = f"{format_size(max_ram)} is too little for this bundle"
            raise BudgetError("--max-ram", why, f"give at least {format_size(smallest)}")
        if context and self._peak(context) > max_ram:
            why = f"{context} tokens take {format_size(self._peak(context))}, and there is {format_size(max_ram)}"
            raise BudgetError("--max-ram", why, f"{fitting[-1]} tokens fit")
        self.tokens = min(self.tokens, fitting[-1])

    def _peak(self, tokens: int) -> int:
        """Return the predicted peak; between two predicted lengths, the line through both, which is never too low."""
        contexts = sorted(self._peaks)
        return round(float(np.interp(tokens, contexts, [self._peaks[context] for context in contexts])))


def _sequences(manifest: Manifest) -> tuple[int, int]:
    """Return the predicted peak without a token of any sequence, and what each token adds."""
    made = next((module.slots for module in manifest.modules if module.slots), None)
    if made is None or made.rss_bytes is None or made.token_rss_bytes is None:
        why = "the bundle does not say what its sequences take"
        raise UnsupportedError("--slots with --max-ram", why, "export it again, or leave one of them out")
    return made.rss_bytes, made.token_rss_bytes


def capacity_for(tokens: int, longest: int) -> int:
    """Return the rows of a buffer for so many tokens, of which there may be at most `longest`."""
    return min(longest, -(-tokens // BUCKET) * BUCKET)


def piece_for(heads: int, tokens: int) -> int:
    """Return the most tokens of one pass, so that their scores with `tokens` others are within SCORES_BYTES.

    A long past makes pieces small, but never smaller than LEAST_PIECE: each pass reads all weights.
    """
    return max(LEAST_PIECE, SCORES_BYTES // (4 * heads * tokens) // 16 * 16)
