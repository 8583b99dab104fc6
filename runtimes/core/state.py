"""Hold the decoder between requests, with the keys and values of the last prompt; other ones come from the store.

With slots there is a state for each of the sequences that the decoder computes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.manifest import Module
from edgeglm.runtimes.core.costs import Costs
from edgeglm.runtimes.core.prefixes import Chain, Prefixes, restore
from edgeglm.runtimes.core.prompt import Key, Prompt, shared_length
from edgeglm.runtimes.core.session import DecoderSession


@dataclass(frozen=True)
class Beginning:
    """The beginning of a prompt that need not be computed: `shared` tokens in the decoder, and what is kept of more."""

    shared: int
    chain: Chain = field(default_factory=lambda: Chain([]))

    @property
    def tokens(self) -> int:
        """The number of its tokens."""
        return max(self.shared, self.chain.stop)


@dataclass(frozen=True)
class Aside:
    """Keys and values of a sequence that is set aside: a copy, (tokens, row_bytes), and what a state says of it."""

    rows: NDArray[np.uint8]
    capacity: int
    known: list[Key]
    costs: Costs


class DecoderState:
    """The decoder of a bundle, loaded when it is needed first, and what its keys and values are of.

    Args:
        bundle: Whose hashes were checked.
        costs: Gets the phases and the decoder's stays.
        prefixes: Of the bundle in the store.
        load: Opens the decoder with room for so many tokens.

    Attributes:
        session: The decoder, while it is loaded.
        taken_by: The request that uses it; None if it is free.
        user: The session whose answer it holds, if that had one.
    """

    def __init__(
        self, bundle: Bundle, costs: Costs, prefixes: Prefixes, load: Callable[[Module, int], DecoderSession]
    ) -> None:
        self.bundle, self.costs, self.prefixes, self._load = bundle, costs, prefixes, load
        self.session: DecoderSession | None = None
        self.taken_by: object | None = None
        self.user: str | None = None
        self._stay = ExitStack()
        self._known: list[Key] = []

    def begin(self, prompt: Prompt) -> Beginning:
        """Return what is at hand of a prompt.

        Raises:
            DamagedFileError: The decoder's file is another by now: a map of one that has shrunk ends the process.
        """
        self.bundle.check(self.bundle.decoder.name)
        keys = prompt.keys()
        shared = shared_length(self._known, keys)
        with self.costs.phase("find prefix") if self.prefixes.is_on else nullcontext():
            chain = self.prefixes.find(keys, prompt.kept, shared)
        beginning = Beginning(shared, chain)
        if not beginning.tokens and self.prefixes.is_foreign(keys, prompt.kept):
            self.costs.note(str(self.prefixes.foreign))
        return beginning

    def shared(self, prompt: Prompt) -> int:
        """Return how many tokens of a prompt it holds."""
        return shared_length(self._known, prompt.keys())

    def copy(self, other: DecoderState, prompt: Prompt) -> None:
        """Take over what another one holds of a prompt."""
        own, count = self.shared(prompt), other.shared(prompt)
        if self.session and other.session and self.session.row_bytes and count > own:
            self.session.reserve(count)
            self.session.truncate(own)
            self.session.write_rows(own, other.session.read_rows(own, count))
            self._known = [*prompt.keys()[:count]]

    def prepare(self, capacity: int, beginning: Beginning) -> DecoderSession | None:
        """Return the decoder with room for `capacity` tokens, and none in it but a prompt's beginning.

        None where the blocks of the store are not its rows; they are then not used again.
        """
        if self.session is None:
            module, size = self.bundle.decoder, self.bundle.manifest.module_bytes(self.bundle.decoder)
            loaded = self.costs.loaded(module, size, lambda module: self._load(module, capacity))
            self.session = self._stay.enter_context(loaded)
        self.session.reserve(capacity)
        self.session.truncate(beginning.shared)
        self._known = self._known[: beginning.shared]  # whatever fails from here on
        if not beginning.chain.blocks:
            return self.session
        with self.costs.phase("restore prefix"):
            is_restored = restore(self.session, beginning.chain)
        if is_restored:
            return self.session
        self.prefixes.refuse()
        self._known = self._known[: self.session.length]
        return None

    @property
    def capacity(self) -> int:
        """The number of tokens that its buffers have room for; 0 where the engine does not say."""
        session = self.session  # which another thread, that only looks, may see gone
        return session.state_bytes // session.row_bytes if session and session.row_bytes else 0

    def set_aside(self) -> Aside:
        """Free the state in the middle of an answer, between two steps, and return what the answer goes on from."""
        assert self.session
        self.taken_by = None
        return Aside(self.session.read_rows(0, self.session.length), self.capacity, self._known, self.costs)

    def bring_back(self, aside: Aside, owner: object) -> DecoderSession:
        """Return the decoder with what was set aside in it, for the request that owns it."""
        self.taken_by, self.costs = owner, aside.costs
        session = self.prepare(aside.capacity, Beginning(0))
        assert session
        session.write_rows(0, aside.rows)
        self._known = aside.known
        return session

    def holds(self, keys: Sequence[Key], user: str | None = None) -> None:
        """Note what keys and values there are of: the first of some tokens, as many as the decoder has; and whose."""
        self.user = user
        self._known = list(keys[: self.session.length]) if self.session else []

    def keep(self, prompt: Prompt) -> None:
        """Keep what other prompts begin with too, unless it is kept."""
        if self.session and self.prefixes.unkept(prompt):
            with self.costs.phase("keep prefix"):
                self.prefixes.keep(self.session, prompt)
        else:
            self.prefixes.use(prompt)  # in memory, which the store does not see

    def forget(self) -> None:
        """Forget the keys and values: the next prompt is prefilled from its beginning."""
        self._known = []

    def rest(self) -> None:
        """Give back what the engine keeps for further steps; keys and values stay."""
        if self.session:
            self.session.rest()

    def release(self) -> None:
        """Unload the decoder."""
        self.session, self.user, self._known = None, None, []
        self._stay.close()


class States:
    """States of which requests take one each while they run, from one pool of keys and values.

    Attributes:
        room: Returns how many tokens all of them may have together; None without a budget.
    """

    def __init__(self, states: Sequence[DecoderState], room: Callable[[], int | None]) -> None:
        self.states, self.room = states, room
        self._asides = list[Aside]()

    @property
    def taken(self) -> int:
        """The number of tokens that requests have room for, with those that are set aside."""
        asides = sum(len(aside.rows) for aside in self._asides)
        return asides + sum(state.capacity for state in self.states if state.taken_by is not None)

    @property
    def held(self) -> int:
        """The number of tokens that there are buffers for, also of requests that have ended."""
        return sum(len(aside.rows) for aside in self._asides) + sum(state.capacity for state in self.states)

    @property
    def held_bytes(self) -> int:
        """The bytes of those buffers."""
        asides = sum(aside.rows.nbytes for aside in self._asides)
        sessions = [state.session for state in self.states]
        return asides + sum(session.state_bytes for session in sessions if session)

    def shared(self, prompt: Prompt) -> int:
        """Return how many tokens of a prompt one of them holds."""
        return max(state.shared(prompt) for state in self.states)

    def has_room(self, capacity: int) -> bool:
        """Return whether a request can take a state now, with room for so many tokens."""
        return any(state.taken_by is None for state in self.states) and self._leaves(capacity)

    def take(self, prompt: Prompt, owner: object, capacity: int) -> DecoderState:
        """Return the free state that holds the most of a prompt, with what a taken one holds of more.

        Args:
            prompt: What is to be computed.
            owner: Who takes the state.
            capacity: Tokens that it will have.
        """
        free = [state for state in self.states if state.taken_by is None]
        best = max(free, key=lambda state: state.shared(prompt))
        most = max(self.states, key=lambda state: state.shared(prompt))
        self._fit(best, capacity)
        best.taken_by = owner
        best.copy(most, prompt)
        return best

    def set_aside(self, state: DecoderState) -> Aside | None:
        """Free a state in the middle of an answer, if there is room for a copy."""
        if not state.capacity or not state.session or not self._leaves(state.session.length):
            return None
        self.fit(state.session.length)
        self._asides.append(aside := state.set_aside())
        return aside

    def bring_back(self, state: DecoderState, aside: Aside, owner: object) -> DecoderSession | None:
        """Return the decoder with what was set aside in it, if its state is free and there is room."""
        if state.taken_by is not None or not self._leaves(aside.capacity):
            return None
        self._fit(state, aside.capacity)
        session = state.bring_back(aside, owner)
        self.drop(aside)
        return session

    def drop(self, aside: Aside) -> None:
        """Forget what was set aside."""
        self._asides = [other for other in self._asides if other is not aside]

    def fit(self, more: int = 0) -> None:
        """Release buffers of requests that have ended until there is room for so many more tokens."""
        free = [state for state in self.states if state.taken_by is None and state.capacity]
        while free and (room := self.room()) is not None and self.held + more > room:
            free.pop().release()

    def open(self) -> None:
        """Load the decoder, unless it is loaded. Raises as the engine does."""
        if self.states[0].session is None:
            self.states[0].prepare(1, Beginning(0))

    def leave(self, user: str) -> None:
        """Release the buffers that hold an answer to a session."""
        for state in self.states:
            if state.user == user and state.taken_by is None:
                state.release()

    def forget(self) -> None:
        """Forget all keys and values."""
        for state in self.states:
            state.forget()

    def release(self) -> None:
        """Unload the decoder of each."""
        with ExitStack() as all_of_them:
            for state in self.states:
                all_of_them.callback(state.release)

    def _leaves(self, tokens: int) -> bool:
        """Return whether requests leave room for so many tokens."""
        room = self.room()
        return room is None or self.taken + tokens <= room

    def _fit(self, state: DecoderState, capacity: int) -> None:
        """Release buffers until a free state may have so many tokens: its own at last."""
        state.taken_by = self
        self.fit(max(0, capacity - state.capacity))
        state.taken_by = None
        room = self.room()
        if room is not None and self.held + max(0, capacity - state.capacity) > room:
            state.release()
