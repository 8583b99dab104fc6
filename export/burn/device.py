"""Interface of a device for the burn test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from edgeglm.process import Ran

# Where things lie in the device's folder.
BUNDLE, SCREENS = "bundle", "screens"


class Device(Protocol):
    """A device with a folder for this test; a context manager that leaves nothing on it, whatever happens.

    Attributes:
        title: The device in a few words.
        emulated: Whether the peak of memory that it reports is the emulator's too.
    """

    title: str
    emulated: bool

    def __enter__(self) -> Device:
        """Make the folder."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what runs, and remove the folder."""

    def push(self, files: Sequence[tuple[Path, str]]) -> None:
        """Put files at paths relative to the folder. Raises BudgetError where there is no room."""

    def python(self, arguments: Sequence[str], memory: int | None = None) -> Ran:
        """Run Python in the folder, in at most `memory` bytes of address space where that is given."""
