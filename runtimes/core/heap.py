"""The C library's heap in a process that loads and releases modules again and again.

glibc raises the size from which a block has pages of its own, up to 32 MiB, as soon as such a block is freed. The next
module's blocks then lie in the heap among small ones that stay, and their pages cannot go back. So the size is fixed.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Above the logits of 250,000 tokens in float64: a block with pages of its own costs a fault a page each time, which a
# token's sampling would feel.
OWN_PAGES = 2 << 20
# What may stay free at the heap's top between two tokens; `trim` gives it back after each release.
FREE_TOP = 16 << 20


def bound_heap() -> None:
    """Give large blocks pages of their own, which go back when they are freed; other C libraries are left as they are.

    It holds for the whole process.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, OWN_PAGES)
        library.mallopt(M_TRIM_THRESHOLD, FREE_TOP)
        library.mallopt(M_ARENA_MAX, 1)  # a heap for each thread would keep what the thread has freed


def trim() -> None:
    """Let the C library give freed memory back to the system, where it can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def give_back(array: NDArray[Any]) -> None:
    """Let the system take the pages of an array, a whole one or rows of it: what is in it is lost, its room stays."""
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError, AttributeError):
        if size > 0:
            ctypes.CDLL("libc.so.6").madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
