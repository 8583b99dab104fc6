"""The parts of edgeglm that an agent's step is fast by, each of which `benchmarks/episode.py` can leave out."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from edgeglm.runtimes.core.runner import Runner

KEPT = 1 << 30  # bytes of prefixes in the user's store


class Part(NamedTuple):
    """An option of the `Runner` or of its `answer`, or whether it keeps its ``session`` attribute; its values."""

    name: str
    place: str
    option: str
    on: Any
    off: Any


PARTS = (
    Part("snapshots", "runner", "keep", KEPT, 0),
    Part("jump-forward", "answer", "grammar", "actions", "off"),
    Part("drafts", "session", "drafts", True, False),
)


def parts() -> list[str]:
    """Return the names of the parts that this edgeglm has."""
    return [part.name for part in PARTS if _has(part)]


def options(on: Collection[str]) -> str:
    """Return the runner's options in JSON that leave out all parts but some."""
    chosen: dict[str, dict[str, Any]] = {"runner": {}, "answer": {}, "session": {}}
    for part in PARTS:
        if _has(part):
            chosen[part.place][part.option] = part.on if part.name in on else part.off
    return json.dumps(chosen)


def ablation() -> Iterator[tuple[str, str]]:
    """Yield a name and options for no part, and for each alone where there are several."""
    if names := parts():
        yield "no part", options(())
    for name in names if len(names) > 1 else ():
        yield f"{name} alone", options((name,))


def _has(part: Part) -> bool:
    if part.place == "session":
        return find_spec(f"edgeglm.runtimes.core.{part.option}") is not None
    return part.option in inspect.signature(Runner if part.place == "runner" else Runner.answer).parameters
