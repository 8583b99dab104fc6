"""Hold the decoder between requests, with the keys and values of the last prompt; other ones come from the store.

With slots there is a state for each of the sequences that the decoder computes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

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


class DecoderState:
    """The decoder of a bundle, loaded when it is needed first, and what its keys and values are of.

    Args:
        bundle: Whose hashes were checked.
        costs: Gets the phases and the decoder's stays.
        prefixes: Of the bundle in the store.
        load: Opens the decoder with room for so many tokens.

    Attributes:
        session: The decoder, while it is loaded.
        is_taken: Whether a request uses it.
    """

    def __init__(
        self, bundle: Bundle, costs: Costs, prefixes: Prefixes, load: Callable[[Module, int], DecoderSession]
    ) -> None:
        self.bundle, self.costs, self.prefixes, self._load = bundle, costs, prefixes, load
        self.session: DecoderSession | None = None
        self.is_taken = False
        self._stay = ExitStack()
        self._known: list[Key] = []

    def begin(self, prompt: Prompt) -> Beginning:
        """Return what is at hand of a prompt."""
        keys = prompt.keys()
        shared = shared_length(self._known, keys)
        with self.costs.phase("find prefix") if self.prefixes.is_on else nullcontext():
            return Beginning(shared, self.prefixes.find(keys, prompt.kept, shared))

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

    def holds(self, keys: Sequence[Key]) -> None:
        """Note what keys and values there are of: the first of some tokens, as many as the decoder has."""
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

    def release(self) -> None:
        """Unload the decoder."""
        self.session, self._known = None, []
        self._stay.close()


class States:
    """States of which requests take one each while they run."""

    def __init__(self, states: Sequence[DecoderState]) -> None:
        self.states = states

    def take(self, prompt: Prompt) -> DecoderState:
        """Return the free state that holds the most of a prompt, with what a taken one holds of more."""
        free = [state for state in self.states if not state.is_taken]
        best = max(free, key=lambda state: state.shared(prompt))
        most = max(self.states, key=lambda state: state.shared(prompt))
        best.is_taken = True
        best.copy(most, prompt)
        return best

    def forget(self) -> None:
        """Forget all keys and values."""
        for state in self.states:
            state.forget()

    def release(self) -> None:
        """Unload the decoder of each."""
        with ExitStack() as all_of_them:
            for state in self.states:
                all_of_them.callback(state.release)
