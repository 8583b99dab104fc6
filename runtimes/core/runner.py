"""Runs a bundle: a module is loaded when its phase comes and released after it, and every phase says what it took."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

from edgeglm.actions import parse_action
from edgeglm.bundle import Bundle, load_bundle, verify_bundle
from edgeglm.errors import DamagedFileError
from edgeglm.memory import peak_rss
from edgeglm.runtimes.core import sessions as engines_here
from edgeglm.runtimes.core.answer import Answer, StopAnswer
from edgeglm.runtimes.core.costs import Costs
from edgeglm.runtimes.core.drafts import Drafts
from edgeglm.runtimes.core.embedding import EmbeddingRows
from edgeglm.runtimes.core.generate import Generation, Lead, Wish
from edgeglm.runtimes.core.grammars import Choice, Grammars
from edgeglm.runtimes.core.heap import bound_heap
from edgeglm.runtimes.core.pictures import PictureEncoder
from edgeglm.runtimes.core.prefixes import OTHER, Keep, Prefixes
from edgeglm.runtimes.core.prompt import Key, Prompt, read_prompt
from edgeglm.runtimes.core.sampling import Sampler, Sampling
from edgeglm.runtimes.core.session import Sessions
from edgeglm.runtimes.core.slots import Slots, single
from edgeglm.runtimes.core.state import Aside, DecoderState, States
from edgeglm.runtimes.core.window import Window
from edgeglm.runtimes.inputs.masks import Mask
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import Message


class Runner(AbstractContextManager["Runner"]):
    """A bundle that is ready to answer, one request after the other; a context manager.

    The decoder stays loaded, with the keys and values of the last request: a prompt is prefilled from where it differs.

    Args:
        folder: The bundle.
        threads: Of the engine, at most one a core, for more only disturb each other; all cores if None.
        context: The most tokens of prompt and answer; the bundle's if None.
        max_ram: The budget in bytes. Without room for both, the decoder makes room for a later picture's module.
        low_rss: Take packed weights from a file whose pages the kernel may drop, made on first use.
        keep: What to keep in the user's store for later runners, and to begin with; nothing if None.
        masks: Regions of pictures that are blanked before they are compared and encoded.
        slots: How many requests may be answered at once, each by a runner of `beside`.
        sessions: Opens modules, on the engines of this machine if nothing else is given.

    Attributes:
        drafts: Of answers; None for none.
        prefixes: What prompts begin with, in the bundle and in the store.
        resources: What is undone when the runner closes: last in first out, each once, whatever fails in another.

    Raises:
        UsageError, DamagedFileError, UnsupportedError: The folder is no bundle that can be run here.
        BudgetError: The context is more than the bundle's, or than the budget has room for.
    """

    def __init__(  # noqa: PLR0913 (what a user may decide)
        self, folder: Path, threads: int | None = None, *, context: int | None = None, max_ram: int | None = None,
        low_rss: bool = False, keep: Keep | None = None, masks: Sequence[Mask] = (), slots: int = 1,
        sessions: Sessions = engines_here,
    ) -> None:  # fmt: skip
        self._costs = Costs()
        bound_heap()
        self.threads = min(threads, os.cpu_count() or 1) if threads else len(os.sched_getaffinity(0))
        self.max_ram, self.sessions = max_ram, sessions
        self.resources = ExitStack()
        with self._costs.phase("start"):
            self.bundle: Bundle = load_bundle(folder)
            verify_bundle(self.bundle)
            self.model = self.bundle.manifest.model
            self.window = Window(self.bundle.manifest, context, max_ram, is_shared=slots > 1)
            self.chat = Chat.of_bundle(self.bundle)
            self.grammars = Grammars(self.bundle.manifest, self.chat)
            self.drafts: Drafts | None = Drafts()
            self.rows = EmbeddingRows(self.bundle)
            self.bundle.check("tokenizer")  # which is read by now
        self.prefixes = Prefixes(self.bundle, keep or Keep(0))
        self.pictures = PictureEncoder(
            self.bundle, self.window, self._costs, self.sessions, self.threads, self.max_ram, self.prefixes, masks
        )
        self.slots = self.resources.enter_context(Slots(self.bundle, self.threads, slots)) if slots > 1 else None
        opens = self.slots.openers if self.slots else [single(sessions, self.bundle, self.threads, low_rss)]
        states = [DecoderState(self.bundle, self._costs, self.prefixes, load) for load in opens]
        self.states = States(states, lambda: None if max_ram is None else self.window.room(max_ram))
        self.wait: Callable[[Callable[[], bool]], object] = lambda is_ready: None
        self._aside: Aside | None = None
        self.user: str | None = None  # the session that a request is of
        self._state = self.states.states[0]
        self.pictures.is_decoder_loaded = lambda: any(state.session for state in states)
        for release in (self.states.release, self.pictures.close):
            self.resources.callback(release)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release everything; a second time does nothing."""
        self.resources.close()

    def beside(self) -> Runner:
        """Return a runner of the same bundle for one request, which may be answered while others are."""
        runner = copy(self)
        runner._costs = Costs()
        runner.pictures = self.pictures.beside(runner._costs)
        return runner

    def set_aside(self) -> bool:
        """Free the decoder's state between two steps of an answer, which then waits for `bring_back`, if it can."""
        self._aside = self.states.set_aside(self._state) if self._state.taken_by is self else None
        return self._aside is not None

    def bring_back(self) -> bool:
        """Go on with what was set aside, if its state is free and there is room; return whether."""
        assert self._aside
        if session := self.states.bring_back(self._state, self._aside, self):
            self._generation.decoder = session
        return session is not None

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Return the prompt that a conversation is; tools and variables are the chat template's. Raises as `answer`."""
        read = partial(
            read_prompt, self.chat, self.model, shapes=self.bundle.shapes, tools=tools, variables=variables,
            digest=self.pictures.digest,
        )  # fmt: skip
        return self.prefixes.marked(read(messages), messages, read, (tools, variables) if tools else None)

    def answer(
        self,
        messages: Sequence[Message] | Prompt,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | Sampler | None = None,
        seed: int = 0,
        grammar: Choice | None = None,
        show: Callable[[str], object] = lambda _: None,
        pause: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Answer a conversation, in the forms that `edgeglm.runtimes.text.messages.normalize` knows.

        Args:
            messages: Text, and pictures by their paths, as data URLs or as bytes; or what `prompt` made of them.
            max_new_tokens: Of the answer.
            sampling: How tokens are chosen, or what chooses them; as the bundle says if None.
            seed: Of the sampling.
            grammar: What the answer is held to; the default of the runner's `grammars` if None.
            show: Gets the text as it is generated; may raise `StopAnswer`.
            pause: Is called before each piece of the prompt; what it raises ends the request.

        Raises:
            UsageError: A picture cannot be read, nothing is asked, or the grammar is none.
            UnsupportedError: The model sees no pictures, or no grammar can be followed here.
            BudgetError: Prompt and answer are longer than the context, or a picture takes more than is left.
            DamagedFileError: A file of the bundle is another by now.
        """
        self._costs.begin()
        prompt = messages if isinstance(messages, Prompt) else self.prompt(messages)
        if not isinstance(sampling, Sampler):
            sampling = Sampler(sampling or Sampling.of(self.bundle.manifest.generation), seed)
        wish = Wish(sampling, max_new_tokens, self.ends, self.grammars.find(grammar), self.drafts, pause)
        with closing(self._complete(prompt, wish)) as tokens:
            return self._told(prompt, tokens, show)

    def complete(
        self, prompt: Prompt, sampler: Sampler, limit: int, ends: Collection[int], grammar: Choice = "off"
    ) -> Iterator[int]:
        """Yield up to `limit` tokens or to one of `ends`; close it before another call. Raises as `answer`."""
        self._costs.begin()
        yield from self._complete(prompt, Wish(sampler, limit, ends, self.grammars.find(grammar)))
        self._keep(prompt)

    def warm(self) -> Prompt | None:
        """Prefill, or restore, the messages that prompts begin with, and return the prompt. Raises as `answer`."""
        if not self.prefixes.messages:
            return None
        prompt = self.prompt([*self.prefixes.messages, OTHER])
        list(self.complete(prompt, Sampler(Sampling()), 1, ()))
        return prompt

    def encode(self, prompts: Sequence[Prompt]) -> None:
        """Encode the pictures of several prompts at once, so that the vision module is loaded once for all of them.

        Until the next call, their features are at hand and the vision module stays out. Raises as `answer`.
        """
        self._costs.begin()
        self._state.release()  # which makes room
        self.pictures.hold([picture for prompt in prompts for picture in prompt.pictures])

    def forget(self) -> None:
        """Forget the keys and values of earlier prompts: the next one is prefilled from its beginning."""
        self.states.forget()

    def rest(self) -> None:
        """Give back what the engine keeps for further steps, and the vision module; keys and values stay."""
        self.pictures.held.release()
        (self.slots or self._state).rest()

    @property
    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        return set(self.bundle.manifest.generation.eos_token_ids)

    def _complete(self, prompt: Prompt, wish: Wish) -> Generator[int]:
        """Load what the prompt needs, and return what generates the tokens behind it."""
        capacity = self.window.capacity(len(prompt.tokens), wish.limit)
        self.pictures.encode_ahead(prompt.unseen(self.states.shared(prompt)) if self.slots else (), self.wait)
        self.wait(partial(self.states.has_room, capacity))
        self._state = self.states.take(prompt, self, capacity)
        self._state.costs = self._costs
        try:
            if self._begin(prompt, wish, capacity):
                return self._generate(self._generation, prompt.keys())
        except BaseException:
            self._state.taken_by = None
            raise
        self._state.taken_by = None
        return self._complete(prompt, wish)

    def _begin(self, prompt: Prompt, wish: Wish, capacity: int) -> bool:
        """Prepare what generates; False where the store's blocks turn out to be of no use."""
        beginning = self._state.begin(prompt)
        if not self.slots and prompt.unseen(beginning.tokens) and not self.pictures.has_room():
            self._state.release()
            beginning = self._state.begin(prompt)
        start = beginning.tokens
        hidden = self.rows.gather(prompt.tokens[start:])
        prompt.place(hidden, self.pictures.features(prompt.unseen(start)), start)
        if (decoder := self._state.prepare(capacity, beginning)) is None:
            return False
        self._prefilled, self._restored = len(hidden), start - beginning.shared
        lead = Lead(prompt.tokens, hidden, prompt.positions[:, :, -len(hidden) :], prompt.begun)
        self._generation = Generation(decoder, self.rows, lead, wish)
        return True

    def _keep(self, prompt: Prompt) -> None:
        """Keep in the store what later runners may begin with."""
        self._state.keep(prompt)
        self.pictures.keep()

    def _generate(self, generation: Generation, state: list[Key]) -> Generator[int]:
        """Yield tokens, and note in the end what the decoder's state holds: `state`, and what was yielded of them."""
        checked = 0
        try:
            for token in generation:
                if generation.passes > checked:
                    checked = generation.passes
                    self.bundle.check(self.bundle.decoder.name)  # whose weights are mapped
                state.append(token)
                yield token
        except DamagedFileError:
            state = []  # what it was computed from is gone
            raise
        finally:
            if self._state.taken_by is self:
                generation.decoder.truncate(len(state))
                self._state.holds(state, self.user)
                self._state.taken_by = None
            elif self._aside:
                self.states.drop(self._aside)

    def _told(self, prompt: Prompt, answer: Iterator[int], show: Callable[[str], object]) -> Answer:
        """Take an answer's tokens, show their text, and return both with what they cost."""
        stream, tokens = self.chat.stream(), list[int]()
        with self._costs.phase("prefill"):
            tokens.append(next(answer))
        first, stopped = self._costs.ms(), True
        with self._costs.phase("decode"), suppress(StopAnswer):
            while True:
                if tokens[-1] not in self.ends:
                    show(stream.add(tokens[-1]))
                if (token := next(answer, None)) is None:
                    break
                tokens.append(token)
            show(stream.finish())
            stopped = False
        seconds = (self._costs.ms() - first) / 1e3
        assert self._state.session is not None
        self._keep(prompt)
        return Answer(
            text=stream.text, action=parse_action(stream.text),
            finish_reason="stop" if stopped or tokens[-1] in self.ends else "length",
            prompt_tokens=len(prompt.tokens), prefilled_tokens=self._prefilled, restored_tokens=self._restored,
            tokens=tokens, model_passes=self._generation.passes,
            time_to_first_token_ms=first, decode_tokens_per_second=(len(tokens) - 1) / seconds if tokens[1:] else 0.0,
            peak_rss_bytes=peak_rss(), state_bytes=self._state.session.state_bytes,
            phases=self._costs.phases, modules=self._costs.modules, grammar_lost=self._generation.lost,
            notes=[*self._costs.notes, *self.grammars.take_notes(self._generation.guide)],
        )  # fmt: skip
