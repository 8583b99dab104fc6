"""Responses: OpenAI's objects, whole or as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec

from edgeglm.runtimes.serve.answers import Delta, Event, Finished, Started, TokenScore
from edgeglm.runtimes.serve.tools import Call

DONE = b"data: [DONE]\n\n"
Fields = dict[str, Any]


@dataclass
class Completion:
    """Collects the events of a request, and writes them in a protocol's form.

    Args:
        model: As the client is told it is called.
        is_chat: Whether it is a chat completion; else a text's.
        usage_chunk: Whether a stream ends with the usage.
    """

    model: str
    is_chat: bool
    usage_chunk: bool = False
    prompt_tokens: int = 0
    generated_tokens: int = 0
    passes: int = 0
    cached_tokens: int = 0
    begun: set[int] = field(default_factory=set)
    called: Counter[int] = field(default_factory=Counter)
    scored: Counter[int] = field(default_factory=Counter)  # characters of the tokens whose scores were told
    texts: dict[int, list[Delta]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"

    def take(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Started():
                self.prompt_tokens = event.prompt_tokens
            case Delta():
                self.texts.setdefault(event.index, []).append(event)
            case Finished():
                self.generated_tokens += event.generated_tokens
                self.passes += event.passes
                # Of a further answer the whole prompt is known, which is no merit of an earlier request.
                self.cached_tokens = self.cached_tokens if event.index else event.cached_tokens
                self.reasons[event.index] = event.reason

    @property
    def usage(self) -> Fields:
        """Tokens of the prompt and of all answers."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated_tokens,
            "total_tokens": self.prompt_tokens + self.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"model_passes": self.passes},
        }

    def whole(self) -> bytes:
        """Return the response of a request that does not stream."""
        choices = [self._choice(index) for index in sorted(self.reasons)]
        return msgspec.json.encode({**self._head(""), "choices": choices, "usage": self.usage})

    def chunks(self, event: Event) -> Iterator[bytes]:
        """Take an event and yield what a stream says of it."""
        self.take(event)
        match event:
            case Delta():
                choice = self._delta(event) if self.is_chat else self._text_choice(event.index, [event], None)
                yield self._chunk([choice])
            case Finished():
                if self.is_chat:
                    # An answer without a text has its role here.
                    choice = {"index": event.index, "delta": self._role(event.index), "finish_reason": event.reason}
                else:
                    choice = self._text_choice(event.index, [], event.reason)
                yield self._chunk([choice])

    def end(self) -> Iterator[bytes]:
        """Yield what a stream ends with."""
        if self.usage_chunk:
            yield _event({**self._head(".chunk"), "choices": [], "usage": self.usage})
        yield DONE

    def _head(self, suffix: str) -> Fields:
        kind = f"chat.completion{suffix}" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[Fields]) -> bytes:
        more = {"usage": None} if self.usage_chunk else {}
        return _event({**self._head(".chunk"), "choices": choices, **more})

    def _role(self, index: int) -> Fields:
        """Return the role, the first time of an answer: it comes with the first token, never before it."""
        if index in self.begun:
            return {}
        self.begun.add(index)
        return {"role": "assistant", "content": ""}

    def _delta(self, event: Delta) -> Fields:
        delta = self._role(event.index)
        if event.content or not (event.reasoning or event.calls):
            delta["content"] = event.content
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.calls:
            start = self.called[event.index]
            delta["tool_calls"] = [{"index": place, **_call(call)} for place, call in enumerate(event.calls, start)]
            self.called[event.index] += len(event.calls)
        logprobs = self._scores(event.scores) if event.scores else None
        return {"index": event.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _choice(self, index: int) -> Fields:
        deltas = self.texts.get(index, [])
        if not self.is_chat:
            return self._text_choice(index, deltas, self.reasons[index])
        scores = [score for delta in deltas for score in delta.scores]
        answer: Fields = {"role": "assistant", "content": "".join(delta.content for delta in deltas)}
        if reasoning := "".join(delta.reasoning for delta in deltas):
            answer["reasoning_content"] = reasoning
        if calls := [_call(call) for delta in deltas for call in delta.calls]:
            answer |= {"content": answer["content"] or None, "tool_calls": calls}
        return {
            "index": index,
            "message": answer,
            "logprobs": self._scores(scores) if scores else None,
            "finish_reason": self.reasons[index],
        }

    def _text_choice(self, index: int, deltas: Sequence[Delta], reason: str | None) -> Fields:
        scores = [score for delta in deltas for score in delta.scores]
        text = "".join(delta.content for delta in deltas)
        logprobs = self._text_scores(index, scores) if scores else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _scores(self, scores: Sequence[TokenScore]) -> Fields:
        content = [{**self._score(score), "top_logprobs": [*map(self._score, score.top)]} for score in scores]
        return {"content": content}

    def _score(self, score: TokenScore) -> Fields:
        data = None if score.data is None else list(score.data)
        return {"token": score.token, "logprob": score.logprob, "bytes": data}

    def _text_scores(self, index: int, scores: Sequence[TokenScore]) -> Fields:
        offsets = [*accumulate((len(score.token) for score in scores), initial=self.scored[index])]
        self.scored[index] = offsets.pop()
        return {
            "text_offset": offsets,
            "tokens": [score.token for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{other.token: other.logprob for other in score.top} for score in scores],
        }


def error_event(body: bytes) -> bytes:
    """Return an error as the event that ends a stream which has begun."""
    return b"data: " + body + b"\n\n"


def _call(call: Call) -> Fields:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _event(fields: Fields) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"
