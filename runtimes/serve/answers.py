"""The work of a completion on the engine's thread: from its prompt to the events of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeglm.runtimes.core.answer import StopAnswer
from edgeglm.runtimes.core.grammars import Choice, GrammarText
from edgeglm.runtimes.core.prompt import Prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Allowing, Sampler, Sampling
from edgeglm.runtimes.serve.calls import call_reader
from edgeglm.runtimes.serve.errors import TOO_LONG, ApiError
from edgeglm.runtimes.serve.text import OPEN, ReasoningSplitter, StopFilter
from edgeglm.runtimes.serve.tools import Call, Form, Tool
from edgeglm.runtimes.text.token_bytes import token_bytes

# A character of which a token has only some bytes.
CUT = "\ufffd"


@dataclass(frozen=True)
class Settings:
    """Settings of a request's answers.

    Args:
        sampling: How tokens are chosen.
        seed: Of the first answer; each further one has the next.
        stops: Texts that end an answer and are not part of it.
        limit: The most tokens of an answer; what is left of the window if None.
        count: How many answers.
        top_logprobs: How many of the likeliest tokens are told besides the chosen one; no logprobs if None.
        splits_reasoning: Whether the reasoning is told from the answer.
        grammar: What the answers are held to; the runner's default if None.
        tools: What they may call, by name.
        form: How the model writes calls.
    """

    sampling: Sampling
    seed: int
    stops: tuple[str, ...] = ()
    limit: int | None = None
    count: int = 1
    top_logprobs: int | None = None
    splits_reasoning: bool = False
    grammar: Choice | None = "off"
    tools: Mapping[str, Tool] = field(default_factory=dict)
    form: Form = "lines"

    @property
    def is_strict(self) -> bool:
        """Whether the client asked for a schema, which an answer keeps or is none."""
        return isinstance(self.grammar, GrammarText) and self.grammar.is_schema


@dataclass(frozen=True)
class TokenScore:
    """A token with its probability's logarithm, before penalties and temperature, its bytes, and the likeliest ones."""

    token: str
    logprob: float
    data: bytes | None = None
    top: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Started:
    """The prompt is accepted; its length in tokens."""

    prompt_tokens: int


@dataclass(frozen=True)
class Delta:
    """A piece of one of the answers."""

    index: int
    content: str = ""
    reasoning: str = ""
    scores: tuple[TokenScore, ...] = ()
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of one of the answers; `cached_tokens` are those of the prompt that were not computed again.

    `passes` of the decoder chose its tokens.
    """

    index: int
    reason: str
    generated_tokens: int
    cached_tokens: int
    passes: int


@dataclass(frozen=True)
class Made:
    """The result of a request that the model does not answer."""

    fields: dict[str, object]


@dataclass(frozen=True)
class Beat:
    """A sign of life of a stream, which is no part of an answer."""


Event = Started | Delta | Finished | Made | Beat
Emit = Callable[[Event], None]


def answer(
    runner: Runner,
    prompt: Prompt,
    settings: Settings,
    emit: Emit,
    check: Callable[[], None],
    pause: Callable[[], None],
) -> None:
    """Answer a prompt as often as asked, and emit the events.

    Args:
        runner: Of the bundle.
        prompt: As the runner reads it.
        settings: Of the request.
        emit: Takes each event.
        check: Raises where nobody waits any more.
        pause: Is called before each step, and lets others go first; raises as `check`.

    Raises:
        ApiError: The prompt leaves no room for an answer.
        EdgeglmError: As `Runner.answer`.
    """
    length, window = len(prompt.tokens), runner.window.tokens
    if length >= window:
        why = f"the prompt has {length} tokens, and prompt and answer together may have {window}"
        raise ApiError(
            400, f"{why}; shorten the messages, or send fewer or smaller images", param="messages", code=TOO_LONG
        )
    emit(Started(length))
    for index in range(settings.count):
        _Answer(runner, prompt, settings, index, emit, check, pause).run(min(settings.limit or window, window - length))


class _Answer:
    """One of a request's answers as it is generated."""

    def __init__(
        self,
        runner: Runner,
        prompt: Prompt,
        settings: Settings,
        index: int,
        emit: Emit,
        check: Callable[[], None],
        pause: Callable[[], None],
    ) -> None:
        self.runner, self.prompt, self.settings, self.index = runner, prompt, settings, index
        self.emit, self.check, self.pause = emit, check, pause
        self.sampler = ScoringSampler(
            settings.sampling, settings.seed + index, settings.top_logprobs, runner.chat.tokenizer
        )
        self.stops = StopFilter(settings.stops)
        thinks = opens_reasoning(runner, prompt)
        self.reasoning = ReasoningSplitter(thinks=thinks) if settings.splits_reasoning else None
        # A thought that stays in the text is no place for calls.
        thinks = thinks and not settings.splits_reasoning
        self.reader = call_reader(settings.form, settings.tools, thinks=thinks) if settings.tools else None
        self.called = False

    def run(self, limit: int) -> None:
        """Generate it."""
        done = self.runner.answer(
            self.prompt,
            max_new_tokens=limit,
            sampling=self.sampler,
            grammar=self.settings.grammar,
            show=self._show,
            pause=self.pause,
        )
        if self.settings.is_strict and done.grammar_lost:
            why = f"is too complex for this answer, which is not held to it: {done.grammar_lost}"
            raise ApiError(400, f"response_format: {why}", param="response_format")
        if not self.stops.stopped:
            self._emit(self.stops.finish())
        if self.reasoning:
            self._send(*self.reasoning.finish())
        reason: str = "stop" if self.stops.stopped else done.finish_reason
        if self.reader:
            rest, calls = self.reader.finish(cut=reason == "length")
            if rest or calls:
                self.emit(Delta(self.index, rest, calls=calls))
        reason = "tool_calls" if self.called and reason == "stop" else reason
        cached = done.prompt_tokens - done.prefilled_tokens
        self.emit(Finished(self.index, reason, done.generated_tokens, cached, done.model_passes))

    def _show(self, piece: str) -> None:
        self.check()
        self._emit(self.stops.add(piece))
        if self.stops.stopped:
            raise StopAnswer

    def _emit(self, text: str) -> None:
        self._send(*(self.reasoning.add(text) if self.reasoning else ("", text)))

    def _send(self, reasoning: str, content: str) -> None:
        scores, calls = self.sampler.take(), tuple[Call, ...]()
        if self.reader:
            content, calls = self.reader.add(content)
        self.called = self.called or bool(calls)
        if reasoning or content or scores or calls:
            self.emit(Delta(self.index, content, reasoning, scores, calls))


class ScoringSampler(Sampler):
    """Remembers how likely each chosen token was.

    Args:
        sampling: As of `Sampler`.
        seed: As of `Sampler`.
        top: How many of the likeliest tokens to remember besides; nothing is remembered if None.
        tokenizer: Of the bundle.
    """

    def __init__(self, sampling: Sampling, seed: int, top: int | None, tokenizer: Tokenizer) -> None:
        super().__init__(sampling, seed)
        self.top, self.tokenizer, self._scores = top, tokenizer, list[TokenScore]()
        self.scores = top is not None

    def choose(self, logits: NDArray[np.float32], seen: Sequence[int], guide: Allowing | None = None) -> int:
        """Return the next token after those `seen`, prompt and answer; one that the guide allows, if there is one."""
        token = super().choose(logits, seen, guide)
        self._remember(token, logits)
        return token

    def force(self, token: int, logits: NDArray[np.float32] | None = None) -> None:
        """Take a token that could be no other; its probability is the model's own."""
        super().force(token, logits)
        if logits is not None:
            self._remember(token, logits)

    def _remember(self, token: int, logits: NDArray[np.float32]) -> None:
        if self.top is not None:
            self._scores.append(self._score(logits.astype(np.float64), token, self.top))

    def take(self) -> tuple[TokenScore, ...]:
        """Return what was remembered since the last time."""
        scores, self._scores = tuple(self._scores), []
        return scores

    def _score(self, logits: NDArray[np.float64], token: int, top: int) -> TokenScore:
        peak = logits.max()
        logprobs = logits - peak - np.log(np.exp(logits - peak).sum())
        best = np.argsort(-logprobs, kind="stable")[:top]
        others = tuple(TokenScore(*self._told(int(index), logprobs)) for index in best)
        return TokenScore(*self._told(token, logprobs), others)

    def _told(self, token: int, logprobs: NDArray[np.float64]) -> tuple[str, float, bytes | None]:
        """Return a token's text, score and bytes, which alone tell the part of a character that some tokens are."""
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        data = token_bytes(self.tokenizer, token) if CUT in text else text.encode()
        return text, float(logprobs[token]), data


def opens_reasoning(runner: Runner, prompt: Prompt) -> bool:
    """Return whether the prompt ends with the mark behind which a model thinks."""
    tail = runner.chat.tokenizer.decode(prompt.tokens[-4:], skip_special_tokens=False)
    return tail.rstrip().endswith(OPEN)
