"""Modules that a converter wrote for an earlier export of the same weights, linked instead of converted again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Converted:
    """The files of converted modules, for as long as their folder stays.

    Args:
        folder: On the disk of the bundles; None where nothing is kept.
        known: By key what the converter reported, and by name the hash of each file.
    """

    folder: Path | None = None
    known: dict[str, tuple[Any, Mapping[str, str]]] = field(default_factory=dict)

    def keep(self, key: str, files: Mapping[str, Path], report: Any) -> None:  # noqa: ANN401 (the converter's own)
        """Keep files, as links to them, and the report; where they cannot be linked, nothing is kept.

        Args:
            key: The hash of all that they are made from.
            files: By name.
            report: The converter's.
        """
        if self.folder is None:
            return
        place = self.folder / key
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            for name, path in files.items():
                os.link(path, place / name)
            self.known[key] = report, {name: _hash(path) for name, path in files.items()}

    def take(self, key: str, files: Mapping[str, Path]) -> Any | None:  # noqa: ANN401 (as `keep` got it)
        """Put what is kept to files, which are not there yet, and return the report; None where it is not whole.

        Args:
            key: As `keep` got it.
            files: By name.
        """
        if self.folder is None or key not in self.known:
            return None
        report, hashes = self.known[key]
        try:
            for name, path in files.items():
                path.unlink(missing_ok=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.folder / key / name, path)
            return report if hashes == {name: _hash(path) for name, path in files.items()} else None
        except OSError:
            return None

    def make_room(self, needed: int) -> None:
        """Let go of all that is kept if its disk has no room for twice so many bytes: a search went without it too."""
        if self.folder and self.folder.is_dir() and shutil.disk_usage(self.folder).free < 2 * needed:
            self.known.clear()
            shutil.rmtree(self.folder, ignore_errors=True)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
