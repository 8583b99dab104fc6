"""The result of a converter, and the samples that it reads."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
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
        wide: Nodes kept in higher precision, most to blame first.
        widened: How these are kept.
        blamed: The nodes that are most to blame for the error that is left.
        before: The error without any node kept; 0 where it was not measured.
        cost: The share of the graph's operations that nodes in higher precision have; None where none is.
        share: How much of the weights is in INT8 or INT4; None where that was not counted.
        untouched: Nodes whose weights are not in INT8 either, most to blame first.
        form: The title of the form that was chosen.
        unreached: Nodes in bodies of If and Loop that no sample reaches, which stay as they are.
        formless: Nodes without a form of INT8, and why.
    """

    tried: dict[str, float] = {}
    wide: tuple[str, ...] = ()
    widened: str = "computed in fp32"
    blamed: tuple[str, ...] = ()
    before: float = 0.0
    share: float | None = None
    untouched: tuple[str, ...] = ()
    form: str = ""
    cost: float | None = None
    unreached: tuple[str, ...] = ()
    formless: str = ""

    def notes(self) -> list[str]:
        """Return what the user should know."""
        forms = len(self.tried)
        notes = [f"of {forms} forms, the least error for its cost: {self.form}"] if forms > 1 else []
        before = f"; the error was {self.before:.2g}" if self.before else ""
        order = ", most to blame first" if self.before else ""
        cost = f"; {self.cost:.0%} of its operations are theirs" if self.cost else ""
        for title, nodes, more in (
            (f"{self.widened}{order}", self.wide, f"{before}{cost}"),
            (f"kept in floating point, weights too{order}", self.untouched, before),
            ("kept in floating point, since no sample reaches them", self.unreached, ""),
        ):
            if nodes:
                others = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
                notes.append(f"{title}: {', '.join(nodes[:NAMED])}{others}{more}")
        if self.share is not None and self.share < MOST and not self.unreached:
            why = f"; {self.formless}" if self.formless else ""
            notes.append(f"{self.share:.0%} of the weights are in 8 bits or fewer{why}")
        return notes


def sample_files(folder: Path) -> list[Path]:
    """Return the files of a folder's samples, ``0.npz`` and so on, in their order."""
    return sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))


def read(file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name."""
    with np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def write(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a file for `read`; unlike ``numpy.savez``, of arrays of any name."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array))


def samples_of(folder: Path) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the samples of a folder, one after the other."""
    return map(read, sample_files(folder))
