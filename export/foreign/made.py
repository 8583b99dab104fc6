"""The result of a converter, and the samples that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

# Below this share of the weights in INT8 a note says so.
MOST = 0.9
# Nodes that a note names.
NAMED = 8


class Made(msgspec.Struct, frozen=True):
    """A converted graph.

    Args:
        tried: The errors of the forms between which it was chosen.
        wide: Nodes kept in floating point, most to blame first.
        blamed: The nodes that are most to blame for the error that is left.
        before: The error without any node kept; 0 where it was not measured.
        share: How much of the weights is in INT8; None where that was not counted.
        untouched: Nodes whose weights are not in INT8 either, most to blame first.
    """

    tried: dict[str, float] = {}
    wide: tuple[str, ...] = ()
    blamed: tuple[str, ...] = ()
    before: float = 0.0
    share: float | None = None
    untouched: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Return what the user should know."""
        notes = []
        what = "floating point" if self.tried else "fp32"
        for title, nodes in (
            (f"computed in {what}", self.wide),
            ("kept in floating point, weights too", self.untouched),
        ):
            if nodes:
                more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
                names = f"{', '.join(nodes[:NAMED])}{more}"
                before = f", most to blame first: {names}; the error was {self.before:.2g}"
                notes.append(f"{title}{before if self.before else f': {names}'}")
        if self.share is not None and self.share < MOST:
            notes.append(
                f"{self.share:.0%} of the weights are in INT8: the others are of operators without a form of it"
            )
        return notes


def read(folder: Path) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the samples of a folder, ``0.npz`` and so on, one after the other."""
    for file in sorted(folder.glob("*.npz"), key=lambda path: int(path.stem)):
        with np.load(file) as archive:
            yield {name: archive[name] for name in archive.files}
