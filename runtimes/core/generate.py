"""Tokens of an answer: where each of them comes from, and the passes of the decoder that they take.

A token is forced by the answer's grammar, or chosen by logits. A pass computes the logits of the place in which the
answer stands: it takes the tokens that are new since the last one, and with them, drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeglm.runtimes.core.embedding import EmbeddingRows
from edgeglm.runtimes.core.grammar import Grammar, Guide
from edgeglm.runtimes.core.sampling import Sampler
from edgeglm.runtimes.core.session import DecoderSession

# A long prompt at once takes more memory and is no faster.
PREFILL_CHUNK = 256


@dataclass(frozen=True)
class Wish:
    """Settings by which the tokens behind a prompt are generated.

    Args:
        sampler: Chooses the tokens that are not forced.
        limit: The most tokens.
        ends: The tokens that end an answer.
        grammar: What the answer is held to, if anything.
        pause: Is called before each piece of the prompt and each pass; what it raises ends the answer.
    """

    sampler: Sampler
    limit: int
    ends: Collection[int]
    grammar: Grammar | None = None
    pause: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Lead:
    """A prompt as the decoder takes it.

    Args:
        tokens: All of them.
        hidden: Embeddings of those that its state lacks, n of them, pictures in their place: (n, hidden).
        positions: Theirs, (axes, 1, n).
        begun: How many of the last ones the answer begins with.
    """

    tokens: Sequence[int]
    hidden: NDArray[np.float32]
    positions: NDArray[np.int64]
    begun: int = 0


class Generation:
    """Generates one answer: iterate over it once.

    Args:
        decoder: With room for prompt and answer; its state holds the beginning of the prompt, or nothing.
        rows: The embeddings of what is generated.
        lead: The prompt.
        wish: How to answer it.

    Attributes:
        tokens: Of the answer, as many as were yielded.
        passes: Of the decoder, the last piece of the prompt being one; as many as tokens where none was forced.
    """

    def __init__(self, decoder: DecoderSession, rows: EmbeddingRows, lead: Lead, wish: Wish) -> None:
        self.decoder, self.rows, self.lead, self.wish = decoder, rows, lead, wish
        self.guide: Guide | None = (
            wish.grammar.begin(lead.tokens[len(lead.tokens) - lead.begun :]) if wish.grammar else None
        )
        self.tokens: list[int] = []
        self.passes = 0
        self._seen = [*lead.tokens]
        self._last_position = int(lead.positions.max())
        self._forced: list[int] = []
        self._fed = 0  # tokens of the answer that the decoder holds
        self._logits: NDArray[np.float32] | None = None  # behind all tokens

    def __iter__(self) -> Iterator[int]:
        """Yield the tokens of the answer, up to the limit; an end token is the last.

        What is forced from the beginning comes when the prompt has been computed, with which it rides.
        """
        held: list[int] = []
        while not self._ended():
            held.append(self._next())
            if not self.passes:
                if not self._ended() and self._is_forced():
                    continue
                self._here()
            yield from held
            held.clear()

    def _ended(self) -> bool:
        return len(self.tokens) >= self.wish.limit or any(token in self.wish.ends for token in self.tokens[-1:])

    def _is_forced(self) -> bool:
        """Return whether the grammar leaves the next token no choice."""
        if self.guide and not self._forced:
            self._forced = self.guide.forced()
        return bool(self._forced)

    def _next(self) -> int:
        """Return the next token, which is from then on a part of the answer."""
        sampler, guide = self.wish.sampler, self.guide
        if self._is_forced():
            token = self._forced.pop(0)
            sampler.force(token, self._here() if sampler.scores else None)
        else:
            token = sampler.choose(self._here(), self._seen, guide.allowed() if guide else None)
        self.tokens.append(token)
        self._seen.append(token)
        self._logits = None
        if guide and token not in self.wish.ends:
            guide.accept(token)
        return token

    def _here(self) -> NDArray[np.float32]:
        """Return the logits (vocabulary) of the next token."""
        if self._logits is None:
            self._logits = self._pass()
        return self._logits

    def _pass(self) -> NDArray[np.float32]:
        """Give the decoder what is new, piece by piece, and return the logits behind it."""
        hidden, positions = self._new()
        for start in range(0, len(hidden), PREFILL_CHUNK):
            self.wish.pause()
            stop = start + PREFILL_CHUNK
            logits = self.decoder.step(hidden[None, start:stop], positions[:, :, start:stop])
        self.passes += 1
        self._fed = len(self.tokens)
        last: NDArray[np.float32] = logits[-1]
        return last

    def _new(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return embeddings and positions of the tokens that the decoder lacks."""
        hidden = self.rows.gather(self.tokens[self._fed :])
        places = self._last_position + 1 + np.arange(self._fed, len(self.tokens))
        positions = np.broadcast_to(places, (*self.lead.positions.shape[:2], len(places)))
        if self.passes:
            return hidden, positions
        return np.concatenate([self.lead.hidden, hidden]), np.concatenate([self.lead.positions, positions], axis=2)
