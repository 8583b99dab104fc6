"""Check that a decoder writes what is new in a cache of keys and values before it reads the cache.

The runner binds the outputs for new keys and values to the last rows of the inputs that hold all of them, which no edge
of the graph says. So what reads a cache must come behind the nodes that write it, by other edges.
"""

from __future__ import annotations

import onnx_ir as ir

CACHE, NEW = "cache_", "new_"


def check_cache_order(model: ir.Model) -> None:
    """Raise ValueError if a node that reads a cache could run before the one that writes its new rows."""
    new = {f"{value.name}": value.producer() for value in model.graph.outputs}
    for value in model.graph.inputs:
        name = f"{value.name}"
        if not name.startswith(CACHE):
            continue
        writer = new[name.replace(CACHE, NEW, 1)]
        for reader in value.consumers():
            if writer not in _before(reader):
                raise ValueError(f"{reader.name} may read {name} before its new rows are written")


def _before(node: ir.Node) -> set[ir.Node]:
    """Return the nodes that a node needs, in the same block: back to what gives it more than a few."""
    seen, waiting = set[ir.Node](), list(node.predecessors())
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += current.predecessors()
    return seen
