"""An answer's text on its way to a client: cut at the texts that end it, its reasoning told from the rest."""

from __future__ import annotations

from collections.abc import Sequence

OPEN, CLOSE = "<think>", "</think>"


class StopFilter:
    """Passes a text on up to the first of the stop texts, piece by piece.

    What may be the beginning of a stop text is held back until it is known.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.stopped = tuple(stops), "", False

    def add(self, piece: str) -> str:
        """Return what can be shown by now; `stopped` tells whether the text ends here."""
        if self.stopped:
            return ""
        text = self.held + piece
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self.held = True, ""
            return text[: min(places)]
        kept = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return what was held back in vain."""
        held, self.held = self.held, ""
        return held


class ReasoningSplitter:
    """Tells the reasoning at the beginning of a text, ``<think>…</think>``, from the answer.

    Args:
        thinks: Whether the prompt has opened the reasoning already.
    """

    def __init__(self, *, thinks: bool = False) -> None:
        self.held, self.thinks, self.begun = "", thinks, thinks

    def add(self, piece: str) -> tuple[str, str]:
        """Return reasoning and answer of a piece."""
        text, self.held = self.held + piece, ""
        if not self.begun:
            if OPEN.startswith(text.lstrip()) and len(text.lstrip()) < len(OPEN):
                self.held = text
                return "", ""
            self.begun, self.thinks = True, text.lstrip().startswith(OPEN)
            text = text.lstrip().removeprefix(OPEN) if self.thinks else text
        if not self.thinks:
            return "", text
        reasoning, closed, answer = text.partition(CLOSE)
        if closed:
            self.thinks = False
            return reasoning, answer.lstrip("\n")
        kept = overlap(text, CLOSE)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept], ""

    def finish(self) -> tuple[str, str]:
        """Return what was held back, as what it turned out to be."""
        held, self.held = self.held, ""
        return (held, "") if self.thinks else ("", held)


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin the stop text, less than all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
