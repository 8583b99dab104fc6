"""Check that a decoder writes what is new in a cache of keys and values before it reads the cache.

The runner binds the outputs for new keys and values to the last rows of the inputs that hold all of them, which no edge
of the graph says. So what reads a cache must come behind the nodes that write it, by other edges.
"""

from __future__ import annotations

from collections import deque

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
            if not _needs(reader, writer):
                raise ValueError(f"{reader.name} may read {name} before its new rows are written")


def _needs(reader: ir.Node, writer: ir.Node | None) -> bool:
    """Return whether a node needs another one, however far: the nearest are looked at first, as it is near."""
    seen, waiting = set[ir.Node](), deque([reader])
    while waiting:
        for node in waiting.popleft().predecessors():
            if node is writer:
                return True
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return False
