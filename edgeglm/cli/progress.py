"""Show the progress of a long command, and its memory meanwhile."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click

from edgeglm.export.requests import Progress
from edgeglm.units import format_size


class Display:
    """Progress in one line of a terminal's stderr, as a context manager that leaves the line empty.

    Args:
        budget: Bytes that all processes may take; shown beside what they do.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.terminal = sys.stderr.isatty()
        self.stage, self.since = "", 0.0

    def __call__(self, progress: Progress) -> None:
        """Show a stage until the next one."""
        if not self.terminal:
            return
        if progress.stage != self.stage:
            self.stage, self.since = progress.stage, time.monotonic()
        parts = [progress.stage]
        if progress.done is not None:
            parts = [f"{progress.stage:<10}{progress.done:>4.0%}"]
        if progress.total_bytes:
            written = (progress.done or 0.0) * progress.total_bytes
            parts.append(f"{written / 1e6 / max(time.monotonic() - self.since, 1e-3):.0f} MB/s")
        if progress.rss_bytes:
            parts.append(f"RSS {format_size(progress.rss_bytes)} of {format_size(self.budget)}")
        click.echo("\r\x1b[2K" + "  ".join(parts), err=True, nl=False)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.terminal:
            click.echo(f"\r\x1b[2K{text}", err=True)

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            click.echo("\r\x1b[2K", err=True, nl=False)
