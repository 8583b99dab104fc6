"""Child processes that do not outlive us."""

from __future__ import annotations

import ctypes
import signal

# Loaded here, because between fork and exec nothing may be.
_PRCTL = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent() -> None:
    """For ``preexec_fn``: the kernel ends the child when we are killed, or interrupted before Popen returns.

    The one C call in between fork and exec is safe beside other threads.
    """
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)
