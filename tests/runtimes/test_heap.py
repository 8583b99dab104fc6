"""The heap of a process that answers again and again: large blocks go back to the system when they are freed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from edgeglm.runtimes.core.heap import OWN_PAGES

# After a block of 8 MiB was freed, glibc by itself would take the next one from the heap.
AGAIN = f"""
import ctypes, sys
from pathlib import Path
import numpy as np

class Info(ctypes.Structure):  # mallinfo(3)
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

info = ctypes.CDLL("libc.so.6").mallinfo2
info.restype = Info
if len(sys.argv) > 1:
    from edgeglm.runtimes.core.runner import Runner
    runner = Runner(Path(sys.argv[1]))
for _ in range(2):
    before = info().hblkhd
    block = np.ones({4 * OWN_PAGES}, np.uint8)
    kept = info().hblkhd - before
    del block
print(kept >= {4 * OWN_PAGES})
"""


def has_mallinfo2() -> bool:
    """Whether the C library says what it has mapped: glibc from 2.33."""
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2")
    except OSError:
        return False


@pytest.mark.skipif(not has_mallinfo2(), reason="asks glibc 2.33")
def test_a_large_block_has_pages_of_its_own_in_a_process_with_a_runner(exact: Path) -> None:
    def again(*arguments: str) -> str:
        command = [sys.executable, "-c", AGAIN, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    assert again() == "False"
    assert again(str(exact)) == "True"
