"""Mutations of JSON: any one value replaced by another type or extreme, a key renamed, dropped or added."""

from __future__ import annotations

import copy
import random
from typing import Any

EXTREMES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 10**6, 10**12, 2**63, -(2**63), 10**30, 0.0, -0.5, 1.5, 1e308,
    "", "x", "\x1b]0;pwned\x07", "../../etc/passwd", "/dev/zero", "decoder/model.onnx", "a" * 5000, "\u0000", "𝕏",
    [], [0], [[]], ["x"] * 3, {}, {"x": 1}, {"": {}},
]  # fmt: skip


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401 (JSON of any form)
    """The path of every value in a tree of JSON, its root left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in items for path in ((*at, key), *places(value, (*at, key)))]


def mutate(tree: dict[str, Any], chance: random.Random) -> tuple[dict[str, Any], str]:
    """Return a copy with one thing changed, and what was."""
    changed = copy.deepcopy(tree)
    *way, last = chance.choice(places(changed))
    parent: Any = changed
    for key in way:
        parent = parent[key]
    where, kind = "/".join(map(str, (*way, last))), chance.randrange(6)
    if kind == 0:
        del parent[last]
        return changed, f"{where} dropped"
    if kind == 1 and isinstance(parent, dict):
        name = chance.choice(["", "unknown", "\x1b[2J", f"{last} "])
        parent[name] = chance.choice(EXTREMES)
        return changed, f"{where}: {name!r} added beside it"
    value = chance.choice(EXTREMES)
    if kind == 2 and isinstance(parent[last], int):
        value = parent[last] + chance.choice((-1, 1, parent[last], 100))
    parent[last] = value
    return changed, f"{where} = {str(value)[:60]!r}"
