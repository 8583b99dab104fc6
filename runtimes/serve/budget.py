"""Divide a budget of memory between bundles and the bodies of requests, which may be as large as the bundles."""

from __future__ import annotations

from collections.abc import Sequence

from edgeglm.errors import EdgeglmError
from edgeglm.manifest import Manifest
from edgeglm.runtimes.core.window import Window
from edgeglm.runtimes.serve.bodies import MAX_BYTES

# The share of bodies; how often a body is in memory while it is read, waits, and its image is decoded; and what
# bodies may take of any budget: a screenshot.
SHARE, COPIES, LEAST = 16, 5, 2 << 20


def divide(
    max_ram: int | None, manifests: Sequence[Manifest], context: int | None, *, is_shared: bool
) -> tuple[int | None, int]:
    """Return the bytes of a budget for bundles, and those that all bodies may have.

    Args:
        max_ram: The budget in bytes, if there is one.
        manifests: Of the bundles, which go first where the budget is short.
        context: As asked for; the bundle's most if None.
        is_shared: Whether sequences are computed side by side.
    """
    if max_ram is None:
        return None, MAX_BYTES
    shares = [min(max_ram // SHARE, COPIES * MAX_BYTES) >> halvings for halvings in range(5)]

    def fits(share: int) -> bool:
        try:
            for manifest in manifests:
                Window(manifest, context, max_ram - share, is_shared=is_shared)
        except EdgeglmError:  # if it is so without a share too, the runner will say it
            return False
        return True

    share = next(filter(fits, shares), 0)
    return max_ram - share, max(LEAST, share // COPIES)
