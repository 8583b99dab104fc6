"""Read the checkpoint's own files in a bundle with distrust: a faithful copy may be anything."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgeglm.errors import DamagedFileError, UsageError

MAX_BYTES = 100_000_000  # of a file; a tokenizer of GLM-4's has some 20 MB
POINTER = b"version https://git-lfs"  # a small text file in place of a large one
T = TypeVar("T")


@dataclass(frozen=True)
class Sidecars:
    """A folder of such files.

    Attributes:
        folder: A checkpoint's, or a bundle's ``tokenizer/``.
        names: The files that count, relative to the folder: those that a bundle's manifest vouches for. All if None.
    """

    folder: Path
    names: frozenset[str] | None = None

    def file(self, name: str) -> Path:
        """Return where a file of that name is, or would be."""
        return self.folder / name

    def bytes(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is none of that name.

        Raises:
            DamagedFileError: It cannot be read, is no regular file, a link to nothing, larger than any such file is,
                or a Git LFS pointer.
            UsageError: This user may not read it.
        """
        if self.names is not None and name not in self.names:
            return None
        file = self.file(name)
        try:
            fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # else opening a FIFO would wait for a writer
        except (FileNotFoundError, NotADirectoryError) as error:
            if os.path.islink(file):
                raise damaged(file, "is a link to nothing") from error
            return None
        except PermissionError as error:
            raise UsageError(file, f"cannot be read: {error.strerror}", "make it readable") from error
        except OSError as error:
            raise damaged(file, f"cannot be read: {error.strerror}") from error
        data = _read(fd, file)
        if data.startswith(POINTER):
            raise DamagedFileError(
                file, "is a Git LFS pointer, not the file itself", "run git lfs pull in the checkpoint"
            )
        return data

    def text(self, name: str) -> str | None:
        """Return a file's text, with the line ends that Python's text files have. Raises as `bytes`."""
        data = self.bytes(name)
        try:
            return None if data is None else data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise damaged(self.file(name), f"is not UTF-8: {error.reason} at byte {error.start}") from error

    def object(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file, an empty one where there is no file. Raises as `bytes`."""
        data = self.bytes(name)
        if data is None:
            return {}
        try:
            value = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise damaged(self.file(name), f"is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise damaged(self.file(name), "is not a JSON object")
        return value


def _read(fd: int, file: Path) -> bytes:
    """Return all bytes of an open file, and close it."""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise damaged(file, "is not a regular file")
        if status.st_size > MAX_BYTES:
            raise damaged(file, f"has {status.st_size} bytes, too many for such a file")
        with os.fdopen(fd, "rb", closefd=False) as opened:
            return opened.read(status.st_size)
    finally:
        os.close(fd)


def typed(file: Path, name: str, value: object, kind: type[T]) -> T:
    """Return a member of a file as what it must be. Raises DamagedFileError where it is not."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise damaged(file, f"its {name} is not valid: {error}") from error


def damaged(file: Path, why: str) -> DamagedFileError:
    """Say what is wrong with a file; it is as its checkpoint has it, and a second export would copy it again."""
    return DamagedFileError(file, why, f"correct {file.name} of the checkpoint, or download it again")
