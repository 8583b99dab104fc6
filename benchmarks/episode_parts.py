"""The parts of edgeglm that an agent's step is fast by, each of which `benchmarks/episode.py` can leave out."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from edgeglm.runtimes.core.runner import Runner

KEPT = 1 << 30  # bytes of prefixes in the user's store


class Part(NamedTuple):
    """An option of the `Runner` (place ``runner``) or of its `answer`, its value with the part and without it."""

    name: str
    place: str
    option: str
    on: Any
    off: Any


PARTS = (
    Part("snapshots", "runner", "keep", KEPT, 0),
    Part("jump-forward", "answer", "grammar", "actions", "off"),
    Part("drafts", "answer", "drafts", True, False),
)


def parts() -> list[str]:
    """Return the names of the parts that this edgeglm has."""
    return [part.name for part in PARTS if part.option in _options_of(part.place)]


def options(on: Collection[str]) -> str:
    """Return the runner's options in JSON that leave out all parts but some."""
    chosen: dict[str, dict[str, Any]] = {"runner": {}, "answer": {}}
    for part in PARTS:
        if part.option in _options_of(part.place):
            chosen[part.place][part.option] = part.on if part.name in on else part.off
    return json.dumps(chosen)


def ablation() -> Iterator[tuple[str, str]]:
    """Yield a name and options for no part, and for each alone where there are several."""
    if names := parts():
        yield "no part", options(())
    for name in names if len(names) > 1 else ():
        yield f"{name} alone", options((name,))


def _options_of(place: str) -> Collection[str]:
    return inspect.signature(Runner if place == "runner" else Runner.answer).parameters
