"""Record which bytes of a file a job wrote, and their checksum."""

from __future__ import annotations

import os
import re
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edgeglm.digest import CHUNK

RUN = re.compile(r"(\d+)\+(\d+)(?:x(\d+)/(\d+))?")


class Extents:
    """Ranges of bytes, in order, none of which overlaps or touches another."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> None:
        """Add a range that is not empty. Raises ValueError where some of it is there already."""
        place = bisect_left(self._begins, end)
        if place and self._ends[place - 1] > begin:
            raise ValueError(f"bytes {begin} to {end} are written twice")
        if place and self._ends[place - 1] == begin:
            place -= 1
            begin = self._begins.pop(place)
            self._ends.pop(place)
        if place < len(self._begins) and self._begins[place] == end:
            self._begins[place] = begin
        else:
            self._begins.insert(place, begin)
            self._ends.insert(place, end)

    def gaps(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges between two offsets that are not there."""
        place = bisect_right(self._ends, begin)
        while begin < end:
            there = place < len(self._begins)
            until = min(end, self._begins[place]) if there else end
            if begin < until:
                yield begin, until
            begin = self._ends[place] if there else end
            place += 1


@dataclass
class Run:
    """``count`` pieces of ``length`` bytes, each ``stride`` bytes behind the one before it."""

    begin: int
    length: int
    count: int = 1
    stride: int = 0

    def take(self, offset: int, length: int) -> bool:
        """Grow by a piece, if it continues the run."""
        if self.count == 1 and offset == self.begin + self.length:
            self.length += length
        elif length == self.length and self.count == 1 and offset > self.begin:
            self.count, self.stride = 2, offset - self.begin
        elif length == self.length and self.count > 1 and offset == self.begin + self.count * self.stride:
            self.count += 1
        else:
            return False
        return True

    def __str__(self) -> str:
        """Spell it as the journal does: ``BEGIN+LENGTH``, and ``xCOUNT/STRIDE`` where there is more than one piece."""
        return f"{self.begin}+{self.length}" + (f"x{self.count}/{self.stride}" if self.count > 1 else "")


@dataclass
class Written:
    """The pieces of a file that a job wrote, in the order of writing, and the CRC-32 over their bytes in that order."""

    crc: int = 0
    runs: list[Run] = field(default_factory=list)

    def add(self, offset: int, data: memoryview) -> None:
        """Add the bytes of a piece."""
        self.crc = zlib.crc32(data, self.crc)
        if not self.runs or not self.runs[-1].take(offset, data.nbytes):
            self.runs.append(Run(offset, data.nbytes))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield where each piece begins and ends."""
        for run in self.runs:
            for begin in range(run.begin, run.begin + max(1, run.stride) * run.count, max(1, run.stride)):
                yield begin, begin + run.length

    def is_in(self, descriptor: int, seen: Callable[[int, memoryview], None] = lambda _, __: None) -> bool:
        """Return whether a file still holds these bytes; `seen` is told of each piece that is read, with its offset."""
        crc = 0
        for begin, end in self.pieces():
            for offset, data in read_pieces(descriptor, begin, end):
                crc = zlib.crc32(data, crc)
                seen(offset, memoryview(data))
        return crc == self.crc

    def __str__(self) -> str:
        """Spell it as the journal does: the checksum in eight hexadecimal digits, and the runs."""
        return f"{self.crc:08x} {','.join(map(str, self.runs))}"

    @classmethod
    def parse(cls, crc: str, runs: str) -> Written:
        """Read what `str` spells. Raises ValueError for anything else."""
        return cls(int(crc, 16), [_parse(run) for run in runs.split(",")])


def read_pieces(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes between two offsets of a file, and let the page cache go of them.

    Args:
        descriptor: Of the open file.
        begin: The first byte.
        end: The byte behind the last one; where the file ends before, fewer come, at most `CHUNK` at a time.
    """
    for offset in range(begin, end, CHUNK):
        yield offset, os.pread(descriptor, min(CHUNK, end - offset), offset)
    if end - begin >= CHUNK:
        os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)


def _parse(run: str) -> Run:
    found = RUN.fullmatch(run)
    if not found:
        raise ValueError(f"{run!r} is not a run")
    begin, length, count, stride = found.groups()
    return Run(int(begin), int(length), int(count or 1), int(stride or 0))
