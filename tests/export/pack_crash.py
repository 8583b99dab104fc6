"""The program that `test_pack` kills: it writes one bundle, all of whose bytes follow from its arguments.

Usage: pack_crash.py TARGET (export | slow | (kill | interrupt | fail) [over])
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgeglm.errors import EdgeglmError
from edgeglm.export.write import writer
from edgeglm.export.write.writer import BundleWriter
from tests.bundles import ROWS_BYTES, sample_manifest, write_bundle

JOBS, CHUNK = 3, 5000
STRIDE = CHUNK + 120  # a padding follows each chunk
NOT_REACHED = 10
CALLS = "open write pwrite fsync fdatasync rename unlink rmdir mkdir ftruncate posix_fallocate".split()


def export(target: Path, key: str = "key", pause: float = 0.0) -> None:
    """Write the bundle, or go on with it."""
    with BundleWriter(target, key) as bundle:
        weights = bundle.file("decoder/weights.bin", JOBS * STRIDE)
        rows = bundle.file("embedding/rows.bin", ROWS_BYTES)
        for job in range(JOBS):
            if not bundle.done(f"layer {job}"):
                for part in range(0, CHUNK, 1000):
                    weights.pwrite(job * STRIDE + part, bytes([65 + job]) * 1000)
                    time.sleep(pause)
                bundle.complete(f"layer {job}")
        if not bundle.done("rows"):
            rows.pwrite(0, b"rows" * (ROWS_BYTES // 4))
            bundle.complete("rows")
        bundle.small("decoder/model.onnx", b"graph")
        bundle.finish(sample_manifest())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill() -> None:
    """What a power cut, the OOM killer or `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def fail() -> None:
    """What a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


EFFECTS = {"kill": kill, "interrupt": interrupt, "fail": fail}


def strike_at(call: int, effect: Callable[[], None]) -> list[int]:
    """Let a system call have an effect, counted from 1; what is returned holds how many calls are left until then."""
    left = [call]

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if not left[0]:
                effect()
            return function(*arguments, **options)

        return run

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    return left


def strikes(call: int, target: Path, effect: Callable[[], None]) -> bool:
    """Export in a child that is struck at a system call; False when it comes to its end before."""
    child = os.fork()
    if not child:
        left = strike_at(call, effect)
        with suppress(KeyboardInterrupt, EdgeglmError):
            export(target)
        os._exit(NOT_REACHED if left[0] > 0 else 0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) in (0, NOT_REACHED), f"call {call}: a traceback"
    return os.WEXITSTATUS(status) == 0


def every(target: Path, effect: Callable[[], None], over: bool) -> None:
    """Strike at every system call in turn; what is there before and after the next run must be whole."""
    export(target)
    expected, call = contents(target), 0
    while True:
        call += 1
        shutil.rmtree(target)
        if over:
            write_bundle(target)
        before = contents(target) if over else None
        if not strikes(call, target, effect):
            break
        if target.exists():
            assert contents(target) in (before, expected), f"call {call}: neither the old nor the new bundle"
        else:
            aside = effect is kill and Path(f"{target}.partial/old").exists()
            assert not over or aside, f"call {call}: the old bundle is gone"
        export(target)
        assert contents(target) == expected, f"call {call}: other bytes"
        assert os.listdir(target.parent) == [target.name], f"call {call}: something is left"
    print(call - 1)


if __name__ == "__main__":
    writer.BATCH_BYTES = 1  # every job is committed
    place, mode = Path(sys.argv[1]), sys.argv[2]
    if mode in EFFECTS:
        # A kill takes nothing that the kernel has; on a busy disk thousands of syncs take minutes.
        for name in ("fsync", "fdatasync"):
            setattr(os, name, lambda descriptor: None)
        every(place, EFFECTS[mode], over=sys.argv[3:] == ["over"])
    else:
        export(place, pause=0.02 if mode == "slow" else 0.0)
