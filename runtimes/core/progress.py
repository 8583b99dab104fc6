"""Show progress in one line of a terminal's stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_line(text: str) -> Iterator[Callable[[float], None]]:
    """Give a function that shows a share from 0 to 1 behind `text` on a terminal; clear the line afterwards."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        yield lambda done: print(f"\r\x1b[2K{text}  {done:.0%}", end="", file=sys.stderr, flush=True)
    finally:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
