"""A chat: turns that build on one another, within the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.text.messages import Message, message

# When the window is full, old turns go until this share of it is in use: each cut costs a prefill of all that is left.
KEPT = 0.75


class Conversation:
    """Asks a runner turn after turn; the oldest turns are forgotten when the window is full, the system prompt never.

    Args:
        runner: Answers.
        system: The system prompt, if there is one.
        prefix: Messages that the conversation begins with, instead of a system prompt.
        max_new_tokens: Of each answer.
        sampling: As in `Runner.answer`.
        seed: As in `Runner.answer`.
    """

    def __init__(
        self,
        runner: Runner,
        system: str | None = None,
        *,
        prefix: Sequence[Message] = (),
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> None:
        self.runner, self.max_new_tokens, self.sampling, self.seed = runner, max_new_tokens, sampling, seed
        self.prefix = [message("system", system)] if system else [*prefix]
        self.turns: list[tuple[Message, Message]] = []  # question and answer

    def ask(self, text: str, image: Path | None = None, show: Callable[[str], object] = lambda _: None) -> Answer:
        """Return the next turn; one that fails leaves the conversation as it was. Raises as `Runner.answer`."""
        question = message("user", text, image)
        turns = self._fitting(question)
        answer = self.runner.answer(
            self._messages(turns, question),
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            seed=self.seed,
            show=show,
        )
        self.turns = [*turns, (question, message("assistant", answer.text))]
        return answer

    def _fitting(self, question: Message) -> list[tuple[Message, Message]]:
        """Return the turns that stay: all, or the newest if they do not fit."""
        window, turns = self.runner.window.tokens - self.max_new_tokens, self.turns
        while turns and len(self.runner.prompt(self._messages(turns, question)).tokens) > window:
            window = int(KEPT * self.runner.window.tokens) - self.max_new_tokens
            turns = turns[1:]
        return turns

    def _messages(self, turns: list[tuple[Message, Message]], question: Message) -> list[Message]:
        return [*self.prefix, *(message for turn in turns for message in turn), question]
