"""Record what a request costs: its phases, the modules that were in memory for it, and notes on its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from edgeglm.manifest import Module
from edgeglm.memory import Phase, PhaseLog
from edgeglm.runtimes.core.answer import Loaded
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.session import DecoderSession, EncoderSession
from edgeglm.runtimes.core.sessions import engine_of, note_of

Session = TypeVar("Session", EncoderSession, DecoderSession)


class Costs:
    """The cost of one request after the other; that of the first begins with the start of the runner.

    Attributes:
        modules: Those that were in memory at any time of the request.
        notes: What became of pictures and prefixes that the user may not expect.
    """

    def __init__(self) -> None:
        self._start, self._log, self._fresh = time.perf_counter(), PhaseLog(), True
        self.modules: list[Loaded] = []
        self.notes: list[str] = []

    def begin(self) -> None:
        """Begin a request."""
        if not self._fresh:
            self._log = PhaseLog()
        self._fresh = False
        self.modules = [module for module in self.modules if module.unloaded is None]
        self.notes = []

    def note(self, text: str) -> None:
        """Add what the user should know, once a request."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def phases(self) -> list[Phase]:
        """The phases of the request that have ended."""
        return list(self._log.phases)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Measure a phase."""
        return self._log.phase(name)

    def ms(self) -> float:
        """Return the milliseconds since the request began."""
        return self._log.ms()

    @contextmanager
    def loaded(self, module: Module, size: int, load: Callable[[Module], Session]) -> Iterator[Session]:
        """Open a module of `size` bytes and release it at the end; both are phases."""
        name, note = module.name, note_of(module)
        stay = Loaded(name, engine_of(module), size, self._since_start(), note=note)
        self.modules.append(stay)
        try:
            with self.phase(f"load {name}"):
                session = load(module)
            try:
                yield session
            finally:
                with self.phase(f"release {name}"):
                    session.close()
                    trim()
        finally:
            stay.unloaded = self._since_start()

    def _since_start(self) -> float:
        return (time.perf_counter() - self._start) * 1e3
