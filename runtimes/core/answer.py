"""An answer of the runner, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeglm.actions import Action
from edgeglm.memory import Phase


class StopAnswer(Exception):
    """Raised by a runner's ``show`` to end an answer here, as an end token does."""


@dataclass
class Loaded:
    """A module's stay in memory: the bytes of its files, and milliseconds since the runner's start.

    ``note`` is what there is to say of where it ran.
    """

    name: str
    engine: str
    bytes: int
    loaded: float
    unloaded: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Answer:
    """An answer and its cost; times are in milliseconds, sizes in bytes.

    ``prefilled_tokens`` are those of the prompt whose keys and values were computed, ``restored_tokens`` those whose
    keys and values an earlier process had kept; an earlier request had left the others in the decoder. ``modules`` are
    those that were in memory at any time of the request. ``finish_reason`` is ``length`` where the answer was cut off.
    ``notes`` say what became of the pictures, or of the answer's grammar, that the user may not expect.
    ``grammar_lost`` is why the grammar was not followed to the end, if it was not.
    ``model_passes`` are those of the decoder that chose tokens; as many as tokens, unless some were forced.
    """

    text: str
    action: Action | None
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    prefilled_tokens: int
    restored_tokens: int
    tokens: list[int]
    model_passes: int
    time_to_first_token_ms: float
    decode_tokens_per_second: float
    peak_rss_bytes: int
    state_bytes: int
    phases: list[Phase]
    modules: list[Loaded]
    notes: list[str]
    grammar_lost: str | None = None

    @property
    def generated_tokens(self) -> int:
        """The number of tokens of the answer, its end token included."""
        return len(self.tokens)
