"""Drafts of an answer: what followed the same tokens in the prompt, in the answer so far, or in earlier answers.

The decoder checks a draft in one pass. How far a draft goes follows from how often such guesses were right: a guess is
of a kind, by how many tokens match, and by how far the places where they match agree on the next one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

# The longest match that is told from a longer one.
LONGEST = 8
# Of earlier answers, each with the end of its prompt, by which its first tokens are found.
ANSWERS, TOKENS, TAIL = 64, 8192, 2
# Places of a token that are compared: the last ones.
PLACES = 1024
# A drafted token costs a part of a pass, and saves one if it is accepted: below this chance it is not worth it.
WORTH = 0.15
# How fast the chance of a kind of guess follows those that were right.
PACE = 0.1
# A guess that so many places agree on, and no other.
MANY = 4
# First chances of a session: of one place, of places of which less than half agree, at least half, all, and many.
ONE, SPLIT, MOST, ALL, CERTAIN = 0.4, 0.25, 0.6, 0.75, 0.95

Kind = tuple[int, float]


class Drafts:
    """The drafts of a session: its earlier answers, and how often each kind of guess was right."""

    def __init__(self) -> None:
        self._earlier: deque[list[int]] = deque(maxlen=ANSWERS)
        self.chances: dict[Kind, float] = {}

    def clear(self) -> None:
        """Forget the earlier answers."""
        self._earlier.clear()

    def begin(self, prompt: Sequence[int], limit: int) -> Lookup:
        """Begin an answer of up to `limit` tokens."""
        return Lookup(self.known(prompt), limit, self.chances)

    def known(self, prompt: Sequence[int]) -> list[int]:
        """Return what an answer to a prompt is looked up in: earlier answers, and the prompt."""
        return [*[token for answer in self._earlier for token in answer][-TOKENS:], *prompt]

    def keep(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep an answer for later ones."""
        self._earlier.append([*prompt[-TAIL:], *answer])


class Lookup:
    """Looks up how an answer may go on.

    Args:
        known: The tokens before it.
        limit: Of its tokens.
        chances: Of each kind of guess; they follow the answer.
    """

    def __init__(self, known: Sequence[int], limit: int, chances: dict[Kind, float]) -> None:
        self._known, self._tokens = np.array(known, np.int64), [*known]  # and behind them the answer, and a draft
        self._count, self._most, self._chances = len(known), len(known) + limit, chances
        self._places: dict[int, list[int]] = {}  # of the tokens that were asked for, but for the last one
        self._next = self.find(self._count)

    def add(self, token: int) -> None:
        """Take the next token of the answer, and whether it was the one to be guessed."""
        if self._next:
            guess, kind = self._next
            chance = self._chance(kind)
            self._chances[kind] = chance + PACE * ((guess == token) - chance)
        if self._count and (places := self._places.get(self._tokens[-1])) is not None:
            places.append(self._count - 1)
        self._tokens.append(token)
        self._count += 1
        self._next = self.find(self._count)

    def guess(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next, as far as all of them are likely enough to be right."""
        draft, found, chance = list[int](), self._next, 1.0
        while found and len(draft) < most:
            token, kind = found
            chance *= self._chance(kind)
            if chance < WORTH:
                break
            draft.append(token)
            if self._count + len(draft) >= self._most:
                break
            self._tokens.append(token)
            found = self.find(len(self._tokens))
        del self._tokens[self._count :]
        return draft

    def _chance(self, kind: Kind) -> float:
        return self._chances.get(kind, kind[1])

    def find(self, stop: int) -> tuple[int, Kind] | None:
        """Return what may come behind the first `stop` tokens, of which the last ones may be a draft; and its kind."""
        places, matched = self._match(stop)
        if not places:
            return None
        # Of tokens that follow equally often, the one that did so last.
        followers = Counter([self._tokens[place + 1] for place in reversed(places)])
        token = max(followers, key=followers.__getitem__)
        if len(places) == 1:
            return token, (matched, ONE)
        if len(followers) == 1:
            return token, (matched, CERTAIN if len(places) >= MANY else ALL)
        return token, (matched, MOST if 2 * followers[token] >= len(places) else SPLIT)

    def _match(self, stop: int) -> tuple[list[int], int]:
        """Return where the tokens before `stop` have been before, as many of them as possible, and how many."""
        tokens, last, matched = self._tokens, stop - 1, 1
        places = self._where(tokens[last]) if last >= 0 else []
        while places and matched < min(LONGEST, stop):
            wanted = tokens[last - matched]
            longer = [place for place in places if place >= matched and tokens[place - matched] == wanted]
            if not longer:
                break
            places, matched = longer, matched + 1
        return places, matched

    def _where(self, token: int) -> list[int]:
        """Return the last places of a token that another one follows."""
        if token not in self._places:
            answer = range(len(self._known), self._count)
            places = [*np.flatnonzero(self._known == token), *(at for at in answer if self._tokens[at] == token)]
            self._places[token] = [int(place) for place in places if place + 1 < self._count]
        return self._places[token][-PLACES:]
