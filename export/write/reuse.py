"""Weights that an earlier export of the same checkpoint and calibration stored alike, copied instead of encoded."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeglm.engines import Dialect
from edgeglm.export.model import Choice, Stored
from edgeglm.export.write.converted import Converted
from edgeglm.export.write.output import OutputFile
from edgeglm.export.write.record import Written
from edgeglm.roles import ModuleName

COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Found:
    """A stored weight in an earlier bundle: its place, its journal's note, and its checksums.

    ``source`` identifies the weights that it was made from, and how they were calibrated.
    """

    source: str
    file: Path
    offsets: Sequence[int]
    note: str
    written: Written

    @property
    def is_whole(self) -> bool:
        """Whether the file still holds the bytes that were written."""
        try:
            with open(self.file, "rb", buffering=0) as source:
                return self.written.is_in(source.fileno())
        except OSError:
            return False

    def copy(self, stored: Stored, offsets: Sequence[int], output: OutputFile) -> None:
        """Write all parts to their places in another file."""
        with open(self.file, "rb", buffering=0) as source:
            for part, old, new in zip(stored.parts, self.offsets, offsets, strict=True):
                for done in range(0, part.nbytes, COPY_BYTES):
                    count = min(COPY_BYTES, part.nbytes - done)
                    output.pwrite(new + done, os.pread(source.fileno(), count, old + done))


@dataclass(frozen=True)
class Reuse:
    """The weights in bundles of earlier exports with the same calibration; a bundle that is gone is skipped.

    What a converter wrote is kept beside them.
    """

    converted: Converted = field(default_factory=Converted)
    known: dict[tuple[ModuleName, Dialect, Stored], list[Found]] = field(default_factory=lambda: defaultdict(list))

    def add(self, choice: Choice, weights: Iterator[tuple[Stored, Found]]) -> None:
        """Remember a module's weights: what was stored, and where."""
        for stored, place in weights:
            self.known[choice.name, choice.dialect, stored].append(place)

    def find(self, choice: Choice, stored: Stored, source: str) -> Found | None:
        """Find where the same bytes lie, made from the same weights."""
        known = self.known[choice.name, choice.dialect, stored]
        return next((place for place in known if place.source == source and place.is_whole), None)
