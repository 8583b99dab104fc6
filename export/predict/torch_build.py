"""Bytes that the installed torch takes beyond its CPU build, of which the constants of the predictions are."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Libraries that a process maps with a build for GPUs, and what they relocate: an export of the demo peaked at 1,085 MiB
# with torch 2.13.0 from the default package index, and at 611 MiB with the CPU build.
GPU_BYTES = 480 << 20
GPU_LIBRARIES = ("libtorch_cuda.so", "libtorch_hip.so", "libtorch_xpu.so")


@cache
def beyond_cpu_build() -> int:
    """Return the bytes that a process with the installed torch takes beyond the CPU build; torch is not imported."""
    found = find_spec("torch")
    folder = Path(found.origin).parent / "lib" if found and found.origin else None
    return GPU_BYTES if folder and any((folder / name).exists() for name in GPU_LIBRARIES) else 0


def with_torch(nbytes: int) -> int:
    """Return what a process takes with the installed torch, if it is `nbytes` with the CPU build."""
    return nbytes + beyond_cpu_build()
