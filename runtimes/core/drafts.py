"""Drafts of an answer: what followed the same tokens in the prompt, in the answer so far, or in earlier answers.

The decoder checks a draft in one pass. The length of a draft follows what was accepted of earlier ones, for each length
of the match that they were found by.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The longest match that is told from a longer one.
LONGEST = 4
# Of earlier answers, each with the end of its prompt, by which its first tokens are found.
ANSWERS, TOKENS, TAIL = 64, 8192, 2
# A drafted token costs a part of a pass, and saves one if it is accepted: below this chance it is not worth it.
WORTH = 0.2
# How fast chances follow what is accepted, where they begin, and after how many matches without a draft one is tried.
PACE, FIRST, REST, RETRY = 0.15, 0.5, 0.8, 48


@dataclass
class Chance:
    """The chance that a draft's first token is accepted, and each further one behind accepted ones."""

    first: float = FIRST
    rest: float = REST
    waited: int = 0

    def length(self, most: int) -> int:
        """Return how many tokens are worth drafting, at most `most`."""
        if self.first < WORTH:
            self.waited += 1
            if self.waited < RETRY:
                return 0
            self.waited = 0
            return min(1, most)
        return min(most, 1 + int(math.log(WORTH / self.first) / math.log(self.rest)))

    def learn(self, drafted: int, accepted: int) -> None:
        """Follow what was accepted of a draft."""
        self.first += PACE * (float(accepted > 0) - self.first)
        for place in range(1, min(drafted, accepted + 1)):
            self.rest += PACE * (float(place < accepted) - self.rest)
        self.rest = min(self.rest, 0.97)


class Drafts:
    """The drafts of a session: its earlier answers, and how drafts have done."""

    def __init__(self) -> None:
        self._earlier: deque[list[int]] = deque(maxlen=ANSWERS)
        self.chances = {length: Chance() for length in range(1, LONGEST + 1)}

    def clear(self) -> None:
        """Forget the earlier answers."""
        self._earlier.clear()

    def begin(self, prompt: Sequence[int], limit: int) -> Lookup:
        """Begin an answer of up to `limit` tokens."""
        earlier = [token for answer in self._earlier for token in answer][-TOKENS:]
        return Lookup([*earlier, *prompt], limit, self.chances)

    def keep(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep an answer for later ones."""
        self._earlier.append([*prompt[-TAIL:], *answer])


class Lookup:
    """Looks up how an answer may go on.

    Args:
        known: The tokens before it.
        limit: Of its tokens.
        chances: By the length of the match.
    """

    def __init__(self, known: Sequence[int], limit: int, chances: dict[int, Chance]) -> None:
        self._tokens = np.empty(len(known) + limit, np.int64)
        self._tokens[: len(known)] = known
        self._count, self._chances = len(known), chances
        self._matched = 0

    def add(self, token: int) -> None:
        """Take the next token of the answer."""
        self._tokens[self._count] = token
        self._count += 1

    def guess(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next: those behind the last of the longest matches."""
        places = self._match()
        if not len(places):
            return []
        length = self._chances[self._matched].length(most)
        start = int(places[-1]) + 1
        return [int(token) for token in self._tokens[start : min(start + length, self._count)]]

    def learn(self, drafted: int, accepted: int) -> None:
        """Take in how many tokens of the last guess were accepted."""
        self._chances[self._matched].learn(drafted, accepted)

    def _match(self) -> NDArray[np.intp]:
        """Return where the last tokens have been before, as many of them as possible; their number is kept."""
        tokens, last = self._tokens[: self._count], self._count - 1
        places, self._matched = np.flatnonzero(tokens[:-1] == tokens[-1]), 1
        while len(places) and self._matched < LONGEST:
            longer = places[places >= self._matched]
            longer = longer[tokens[longer - self._matched] == tokens[last - self._matched]]
            if not len(longer):
                break
            places, self._matched = longer, self._matched + 1
        return places
