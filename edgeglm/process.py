"""Child processes that do not outlive us."""

from __future__ import annotations

import ctypes
import signal

# Loaded here, because between fork and exec nothing may be.
_PRCTL = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1  # prctl(2)
_PERSONALITY = ctypes.CDLL(None).personality
_ADDR_NO_RANDOMIZE = 0x0040000  # personality(2)


def end_with_parent() -> None:
    """Have the kernel end this child with its parent, for ``preexec_fn``, even before Popen returns.

    The one C call in between fork and exec is safe beside other threads.
    """
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def at_fixed_addresses() -> None:
    """`end_with_parent` for a program whose output depends on where its memory lies: the kernel does not randomize it.

    Where a container forbids it, it has no effect.
    """
    end_with_parent()
    _PERSONALITY(_ADDR_NO_RANDOMIZE)
