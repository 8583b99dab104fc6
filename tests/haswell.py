"""An x86 CPU without VNNI, emulated: where ONNX Runtime's fast INT8 kernels saturate."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeglm.cache import cache_folder

ROOT = Path(__file__).parents[1]


def emulator() -> str | None:
    """Debian's qemu-user, or what ``make test-arm`` has fetched."""
    cache = cache_folder()
    kept = cache / "aarch64/qemu-x86_64" if cache else None
    return shutil.which("qemu-x86_64") or (str(kept) if kept and kept.is_file() else None)


def run_on_haswell(*arguments: str | Path) -> str:
    """What this Python prints on stdout there; skips the test where there is no emulator."""
    qemu = emulator()
    if platform.machine() != "x86_64" or qemu is None:
        pytest.skip("no qemu-x86_64: apt install qemu-user, or make test-arm")
    command = [qemu, "-cpu", "Haswell", sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
