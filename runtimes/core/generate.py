"""Tokens from a prompt: prefill in chunks, then one step a token."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeglm.runtimes.core.embedding import EmbeddingRows
from edgeglm.runtimes.core.sampling import Sampler
from edgeglm.runtimes.core.session import DecoderSession

# A long prompt at once takes more memory and is no faster.
PREFILL_CHUNK = 256


def generate(  # noqa: PLR0913 (the state of one answer)
    decoder: DecoderSession,
    rows: EmbeddingRows,
    prompt: Sequence[int],
    hidden: NDArray[np.float32],
    positions: NDArray[np.int64],
    sampler: Sampler,
    ends: Container[int],
    limit: int,
    pause: Callable[[], object] = lambda: None,
) -> Iterator[int]:
    """Yield the tokens of an answer, up to `limit` of them; one of `ends` is the last.

    Args:
        decoder: With room for prompt and answer; its state holds the beginning of the prompt, or nothing.
        rows: The embeddings of what is generated.
        prompt: The prompt's tokens.
        hidden: Embeddings of those that are not in the state, n of them, pictures in their place: (n, hidden).
        positions: Theirs, (axes, 1, n).
        sampler: Chooses each token.
        ends: The tokens that end an answer.
        limit: The most tokens.
        pause: Is called before each piece of the prompt; what it raises ends the answer.
    """
    for start in range(0, len(hidden), PREFILL_CHUNK):
        pause()
        stop = start + PREFILL_CHUNK
        logits = decoder.step(hidden[None, start:stop], positions[:, :, start:stop])[-1]
    seen, where = list(prompt), np.full_like(positions[:, :, -1:], positions.max())
    for count in range(1, limit + 1):
        token = sampler.choose(logits, seen)
        yield token
        if token in ends or count == limit:
            return
        seen.append(token)
        where = where + 1
        logits = decoder.step(rows.gather([token])[None], where)[-1]
