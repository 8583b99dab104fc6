"""Weights that an earlier export of the same checkpoint and calibration stored alike, copied instead of encoded."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeglm.export.model import Choice, Dialect, Stored
from edgeglm.export.pack.output import OutputFile
from edgeglm.manifest import ModuleName

COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Found:
    """Where a stored weight lies in an earlier bundle, and what that one's journal noted of it."""

    file: Path
    offsets: Sequence[int]
    note: str

    def copy(self, stored: Stored, offsets: Sequence[int], output: OutputFile) -> None:
        """Write all parts to their places in another file."""
        with open(self.file, "rb", buffering=0) as source:
            for part, old, new in zip(stored.parts, self.offsets, offsets, strict=True):
                for done in range(0, part.nbytes, COPY_BYTES):
                    count = min(COPY_BYTES, part.nbytes - done)
                    output.pwrite(new + done, os.pread(source.fileno(), count, old + done))


@dataclass(frozen=True)
class Reuse:
    """What the bundles of earlier exports hold, whose calibration is the same; one that is gone is passed over."""

    known: dict[tuple[ModuleName, Dialect, Stored], list[Found]] = field(default_factory=lambda: defaultdict(list))

    def add(self, choice: Choice, weights: Iterator[tuple[Stored, Sequence[int], str]], file: Path) -> None:
        """Remember a module's weights: what was stored, at which offsets, with which note."""
        for stored, offsets, note in weights:
            self.known[choice.name, choice.dialect, stored].append(Found(file, offsets, note))

    def find(self, choice: Choice, stored: Stored) -> Found | None:
        """Where the same bytes lie."""
        return next((each for each in self.known[choice.name, choice.dialect, stored] if each.file.is_file()), None)
