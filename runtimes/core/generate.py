"""Tokens of an answer: where each of them comes from, and the passes of the decoder that they take.

A token is forced by the answer's grammar, or chosen by logits. A pass computes the logits of the place in which the
answer stands: it takes the tokens that are new since the last one, and a draft behind them. As long as the tokens that
are chosen are those of the draft, the logits of the next place are there already; the first other one ends it. So a
draft changes how many passes there are, and not how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeglm.runtimes.core.drafts import Drafts
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
        drafts: The session's; none are made if None.
        pause: Is called before each piece of the prompt and each pass; what it raises ends the answer.
    """

    sampler: Sampler
    limit: int
    ends: Collection[int]
    grammar: Grammar | None = None
    drafts: Drafts | None = None
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
        passes: Of the decoder, the last piece of the prompt being one; as many as tokens where none was forced
            or drafted.
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
        self._lookup = wish.drafts.begin(lead.tokens, wish.limit) if wish.drafts else None
        self._forced: list[int] = []
        self._prompt = decoder.length + len(lead.hidden)  # tokens before the answer
        self._fed: list[int] = []  # what the decoder holds behind the prompt: the answer, and then a draft
        self._logits = np.empty((0, 0), np.float32)  # of the places from `_first` on
        self._first = 0

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
        if self.wish.drafts:
            self.wish.drafts.keep(self.lead.tokens, self.tokens)

    @property
    def lost(self) -> str | None:
        """The reason why the answer is not held to its grammar to the end; None if it is, or has none."""
        return self.guide.lost if self.guide else None

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
            token = sampler.choose(self._here(), self._seen, guide)
        self._take(token)
        return token

    def _take(self, token: int) -> None:
        """Make a token a part of the answer; a draft that said another one is forgotten from here on."""
        place = len(self.tokens)
        self.tokens.append(token)
        self._seen.append(token)
        if self.guide and token not in self.wish.ends:
            self.guide.accept(token)
        if self._lookup:
            self._lookup.add(token)
        if place < len(self._fed) and self._fed[place] != token:
            self.decoder.truncate(self._prompt + place)
            del self._fed[place:]
            self._logits = self._logits[: place + 1 - self._first]

    def _here(self) -> NDArray[np.float32]:
        """Return the logits (vocabulary) of the next token."""
        place = len(self.tokens)
        if place - self._first >= len(self._logits):
            self._pass()
        logits: NDArray[np.float32] = self._logits[place - self._first]
        return logits

    def _pass(self) -> None:
        """Give the decoder what it lacks, with a draft behind it: logits of this place, and of those in the draft."""
        draft = self._draft()
        self._first, last = len(self.tokens), 1 + len(draft)
        hidden, positions = self._new([*self.tokens[len(self._fed) :], *draft])
        start, count = 0, len(hidden)
        while start < count:
            self.wish.pause()
            stop = count if count - start <= PREFILL_CHUNK else min(start + PREFILL_CHUNK, count - last)
            is_last = stop == count
            pieces = hidden[None, start:stop], positions[:, :, start:stop]
            self._logits = self.decoder.step(*pieces, last=last if is_last else 1)
            start = stop
        self.passes += 1
        self._fed = [*self.tokens, *draft]

    def _draft(self) -> list[int]:
        """Return tokens that may come next, which the pass for this place checks."""
        most = min(self.decoder.max_last, PREFILL_CHUNK, self.wish.limit - len(self.tokens))
        room = 0 if self._ended() else most - 1
        if self._forced:  # whose logits are wanted
            return self._forced[:room]
        if room <= 0 or not self._lookup:
            return []
        guess = self._lookup.guess(room)
        return self.guide.drafted(guess)[:room] if self.guide and guess else guess

    def _new(self, tokens: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return embeddings and positions of tokens that the decoder lacks, the first time behind the prompt's."""
        hidden = self.rows.gather(tokens)
        first = self._last_position + 1 + len(self._fed)
        positions = np.empty((*self.lead.positions.shape[:2], len(tokens)), np.int64)
        positions[:] = range(first, first + len(tokens))
        if self.passes:
            return hidden, positions
        return np.concatenate([self.lead.hidden, hidden]), np.concatenate([self.lead.positions, positions], axis=2)
