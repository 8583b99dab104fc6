"""Hold the vision module between requests, where there is room for it beside the decoder."""

from __future__ import annotations

from contextlib import ExitStack

from edgeglm.runtimes.core.session import EncoderSession
from edgeglm.runtimes.inputs.positions import Grid


class HeldEncoder:
    """The session that encoded the last picture, if it stays, and the grid of its graph.

    Attributes:
        nbytes: What the module took when it encoded a picture, with its activations; None before the first one.
    """

    def __init__(self) -> None:
        self.nbytes: int | None = None
        self._grid: Grid | None = None
        self._session: EncoderSession | None = None
        self._stay = ExitStack()

    @property
    def taken(self) -> int:
        """The bytes that it takes now."""
        return self.nbytes or 0 if self._session else 0

    def take(self, grid: Grid, stay: ExitStack) -> EncoderSession | None:
        """Return the session, if it is of that grid, from then on in another stay; otherwise release it."""
        if self._grid != grid:
            self.release()
            return None
        session, self._grid, self._session = self._session, None, None
        stay.enter_context(self._stay.pop_all())
        return session

    def hold(self, grid: Grid, session: EncoderSession, stay: ExitStack) -> None:
        """Hold a session until it is taken or released, which ends its stay."""
        self._grid, self._session, self._stay = grid, session, stay

    def release(self) -> None:
        """Release the session, if one is held."""
        self._grid = self._session = None
        self._stay.close()
