"""The journal of a partial bundle: which files it has, and which jobs' bytes are on the disk, with their checksums.

Text, a line for each statement, with the statement's CRC-32 before it: ``key KEY`` first, then ``source TEXT``,
``file SIZE PATH`` and ``job NAME TAB NOTE``, and behind that a TAB and ``CRC RUNS PATH`` for each file that the job
wrote into (`written.Written`). A last line that a power cut tore does not count; any other damage condemns the whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeglm.export.write.disk import write_all
from edgeglm.export.write.record import Written


@dataclass
class Record:
    """The content of a journal.

    ``sizes`` are those of the files, ``jobs`` the notes of the finished jobs, ``written`` what each wrote by file;
    ``source`` is the last that was stated, ``length`` that of the whole lines, in bytes.
    """

    key: str
    sizes: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    length: int = 0
    source: str = ""
    written: dict[str, dict[str, Written]] = field(default_factory=dict)


class Journal:
    """A journal open for appending.

    Args:
        path: The file.
        record: What it says already; what stands behind that is cut off, and an empty one gets its key.
    """

    def __init__(self, path: Path, record: Record) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._descriptor, record.length)
        if not record.length:
            self.append([f"key {record.key}"])

    def append(self, statements: Iterable[str]) -> None:
        """Add statements, and return when they are on the disk."""
        write_all(self._descriptor, b"".join(map(_line, statements)))
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_journal(path: Path) -> Record | None:
    """Return what a journal says, None where there is none or it is still empty.

    Raises:
        ValueError: It is damaged.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    if lines and not _is_whole(lines[-1]):
        lines.pop()
    if not lines:
        return None
    if not all(map(_is_whole, lines)):
        raise ValueError(f"{path}: a line's checksum is wrong")
    (_, key), *statements = (line[9:-1].decode().split(" ", 1) for line in lines)
    record = Record(key, length=sum(map(len, lines)))
    for kind, value in statements:
        if kind == "job":
            name, note, *sums = f"{value}\t".split("\t")
            record.jobs[name] = note
            parts = [text.split(" ", 2) for text in sums if text]
            record.written[name] = {path: Written.parse(crc, runs) for crc, runs, path in parts}
        elif kind == "source":
            record.source = value
        else:
            size, _, name = value.partition(" ")
            record.sizes[name] = int(size)
    return record


def job_statement(name: str, note: str, written: Mapping[str, Written]) -> str:
    """Return the statement that a job is done."""
    return "\t".join([f"job {name}", note, *(f"{sums} {path}" for path, sums in written.items())])


def _line(statement: str) -> bytes:
    text = statement.encode()
    if len(text.splitlines()) != 1:
        raise ValueError(f"{statement!r} is not one line")
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and line[:9] == b"%08x " % zlib.crc32(line[9:-1])
