"""Resident memory of a process and its descendants, from Linux's ``/proc``; everything in bytes.

Resident memory (RSS) is anonymous pages, mapped files and shared memory together (``RssAnon``, ``RssFile`` and
``RssShmem`` in proc_pid_status(5)). A page that several processes map counts in each of them, so a sum over a tree of
processes is an upper bound. The page cache of files that are read or written without a map is in none of them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from types import TracebackType

PEAK = re.compile(rb"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
CURRENT = re.compile(rb"^VmRSS:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Phase:
    """A finished phase of work: when it began and how long it took, and this process's resident memory at its end."""

    name: str
    start_ms: float
    ms: float
    rss_bytes: int


class PhaseLog:
    """The phases of work in this process, in the order in which they ended; times count from its making."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.phases: list[Phase] = []

    def ms(self) -> float:
        """Return the milliseconds until now."""
        return (time.perf_counter() - self.start) * 1e3

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record a phase, also when it ends in an exception."""
        start = self.ms()
        try:
            yield
        finally:
            self.phases.append(Phase(name, start, self.ms() - start, current_rss()))


class MemoryCurve:
    """A context manager that samples this process's resident memory in a thread.

    Attributes:
        points: Milliseconds since the start, and bytes.
    """

    def __init__(self, interval: float = 0.005) -> None:
        self.points: list[tuple[float, int]] = []
        self._interval, self._stop = interval, Event()
        self._thread = Thread(target=self._watch, name="memory curve", daemon=True)

    def __enter__(self) -> MemoryCurve:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._take()

    def _watch(self) -> None:
        self._take()
        while not self._stop.wait(self._interval):
            self._take()

    def _take(self) -> None:
        self.points.append(((time.perf_counter() - self._start) * 1e3, current_rss()))


class MemorySampler:
    """Watches this process and all of its descendants from a thread, as a context manager.

    Args:
        interval: Seconds between two samples.

    Attributes:
        rss_bytes: The sum over the processes in the newest sample.
        process_peaks: The kernel's own peak (``VmHWM``) of every process seen, by process id. It misses nothing, and
            includes what came before the sampler.
    """

    def __init__(self, interval: float = 0.05) -> None:
        self.rss_bytes = 0
        self.process_peaks: dict[int, int] = {}
        self._interval = interval
        self._sampled_peak = 0
        self._stop = Event()
        self._thread = Thread(target=self._watch, name="memory sampler", daemon=True)

    @property
    def peak_bytes(self) -> int:
        """The highest sum in a sample, or the kernel's peak of a single process where that is higher."""
        return max(self._sampled_peak, *self.process_peaks.values(), 0)

    def __enter__(self) -> MemorySampler:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        total, own = 0, os.getpid()
        program = _program(own)
        for pid in _tree(own):
            with suppress(OSError):  # it has ended
                if pid != own and _program(pid) == program:
                    continue  # a fork of ours that has not begun its program: its pages are ours, counted already
                status = _status(pid)
                total += _bytes(CURRENT, status)
                self.process_peaks[pid] = max(_bytes(PEAK, status), self.process_peaks.get(pid, 0))
        self.rss_bytes = total
        self._sampled_peak = max(self._sampled_peak, total)


def current_rss(pid: int | None = None) -> int:
    """Return the resident memory of a process (default: this one) now.

    Raises:
        OSError: There is no such process.
    """
    return _bytes(CURRENT, _status(pid or os.getpid()))


def peak_rss(pid: int | None = None) -> int:
    """Return the highest resident memory that a process (default: this one) had since it began its program.

    Raises:
        OSError: There is no such process.
    """
    return _bytes(PEAK, _status(pid or os.getpid()))


def _status(pid: int) -> bytes:
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        return file.read()


def _program(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
        return file.read()


def _bytes(field: re.Pattern[bytes], status: bytes) -> int:
    match = field.search(status)
    return int(match[1]) * 1024 if match else 0  # a process that is ending has no memory left


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for child in _children(pid):
        yield from _tree(child)


def _children(pid: int) -> list[int]:
    """Return the processes that a process started, each of which belongs to the thread that did it."""
    children: list[int] = []
    with suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            # Needs CONFIG_PROC_CHILDREN, which distributions set; without it, children go uncounted.
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:
                children += map(int, file.read().split())
    return children
