"""The nodes that ruin a converted graph, most to blame first, and how few of them must be kept wide."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

# Nodes, or groups of neighbours, that are tried alone; and of these, the share that is kept wide to be below `GOAL`
# where the error already passes.
TRIED, CHEAP = 48, 8
GOAL = 0.1
# Nodes that a message names.
NAMED = 3


@dataclass(frozen=True)
class Search:
    """The nodes kept wide, the error with them and without, and all nodes by the damage of each."""

    wide: tuple[str, ...]
    error: float
    before: float
    blamed: tuple[str, ...] = ()


def search(
    nodes: Sequence[str],
    error_of: Callable[[Collection[str]], float],
    passes: Callable[[float], bool],
    goal: float = GOAL,
) -> Search:
    """Return which nodes to keep wide.

    Args:
        nodes: Names, in the order of computation.
        error_of: Of the graph with these nodes kept wide.
        passes: Whether an error passes.
        goal: An error that needs no more.
    """
    before = error_of(())
    if before <= goal or not nodes:
        return Search((), before, before)
    groups = grouped(nodes, TRIED)
    alone = [error_of([name for name in nodes if name not in group]) for group in groups]
    order = [groups[index] for index in sorted(range(len(groups)), key=lambda index: -alone[index])]
    blamed = tuple(name for group in order for name in group)
    cheap = max(1, len(groups) // CHEAP)
    count = 1
    while count < len(order) and (count <= cheap or not passes(before)):
        wide = tuple(name for group in order[:count] for name in group)
        error = error_of(wide)
        if error <= goal or (count >= cheap and passes(error) and not passes(before)):
            return Search(wide, error, before, blamed)
        count *= 2
    if passes(before):
        return Search((), before, before, blamed)
    return Search(blamed, error_of(blamed), before, blamed)


def grouped(nodes: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Return names in groups of neighbours, at most so many."""
    size = max(-(-len(nodes) // count), 1)
    return [tuple(nodes[start : start + size]) for start in range(0, len(nodes), size)]
