"""``--via qemu``: an emulated 64-bit Arm board, which sees this machine's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from edgeglm.export.burn.userland import CPU, set_up
from edgeglm.process import Ran
from edgeglm.scratch import scratch_folder


class Qemu:
    """A `Device`; `wheels` are what the runner needs there."""

    def __init__(self, wheels: Sequence[str]) -> None:
        self.title, self.emulated = f"qemu, {CPU}", True
        self._wheels = wheels

    def __enter__(self) -> Qemu:
        self._userland = set_up(self._wheels)
        self._scratch = scratch_folder("burn")
        self._folder = self._scratch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.__exit__(None, None, None)

    def push(self, files: Sequence[tuple[Path, str]]) -> None:
        """Link the files in place of copying them."""
        for source, target in files:
            path = self._folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(source.resolve())

    def python(self, arguments: Sequence[str], memory: int | None = None) -> Ran:
        """Run Python there; an interrupt ends it with this process's other children."""
        return self._userland.python(arguments, memory, self._folder)
