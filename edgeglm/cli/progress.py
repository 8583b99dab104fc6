"""Show the progress of a long command, and its memory meanwhile."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click

from edgeglm.memory import MemorySampler
from edgeglm.units import format_size


class Display:
    """Progress in one line of a terminal's stderr, as a context manager that leaves the line empty."""

    def __init__(self, memory: MemorySampler, budget: int, start: float) -> None:
        self.memory, self.budget, self.start = memory, budget, start
        self.terminal = sys.stderr.isatty()
        self.module, self.since = "", start

    def say(self, text: str) -> None:
        """Show a text until the next one."""
        if self.terminal:
            click.echo(f"\r\x1b[2K{text}  {self._rss()}", err=True, nl=False)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.terminal:
            click.echo(f"\r\x1b[2K{text}", err=True)

    def progress(self, module: str, done: int, total: int) -> None:
        """Show how many bytes of a module are written."""
        if module != self.module:
            self.module, self.since = module, time.monotonic()
        speed = done / 1e6 / max(time.monotonic() - self.since, 1e-3)
        self.say(f"{module:<10}{done / max(total, 1):>4.0%}  {speed:.0f} MB/s")

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            click.echo("\r\x1b[2K", err=True, nl=False)

    def _rss(self) -> str:
        return f"RSS {format_size(self.memory.rss_bytes)} of {format_size(self.budget)}"
