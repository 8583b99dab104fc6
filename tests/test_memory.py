"""Measuring resident memory: this process, its descendants, and phases."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgeglm.memory import MemorySampler, PhaseLog, current_rss, peak_rss

MIB = 1 << 20
HOLD = "import sys; held = bytearray({size} << 20); print(flush=True); sys.stdin.read()"
GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD.format(size=100)!r}])"

FORK = """
import os, time
from edgeglm.memory import MemorySampler, peak_rss
held = bytearray(64 << 20)
with MemorySampler(0.01) as sampler:
    child = os.fork()
    if not child:
        time.sleep(0.3)
        os._exit(0)
    os.waitpid(child, 0)
print(sampler.peak_bytes - peak_rss())
"""


def touched(size: int) -> mmap.mmap:
    """Anonymous memory that closing gives back at once."""
    memory = mmap.mmap(-1, size)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_memory_is_counted_in_bytes_and_the_peak_stays() -> None:
    before = current_rss()
    memory = touched(64 * MIB)
    assert 63 * MIB < current_rss() - before < 70 * MIB
    memory.close()
    assert abs(current_rss() - before) < 6 * MIB
    assert peak_rss() >= before + 63 * MIB


def largest_other(sampler: MemorySampler) -> int:
    """Return the largest peak of a process that is not this one."""
    return max((peak for pid, peak in list(sampler.process_peaks.items()) if pid != os.getpid()), default=0)


@pytest.mark.parametrize("code", [HOLD.format(size=100), GRANDCHILD], ids=["child", "grandchild"])
def test_a_peak_of_the_whole_tree_is_seen(code: str) -> None:
    with MemorySampler(0.01) as sampler:
        alone = sampler.rss_bytes
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout
            child.stdout.readline()
            # Another process alone has them: the sum says so before the last page is touched.
            wait_until(lambda: largest_other(sampler) > 100 * MIB)
        wait_until(lambda: sampler.rss_bytes < alone + 50 * MIB)
    assert alone + 100 * MIB < sampler.peak_bytes
    assert 100 * MIB < largest_other(sampler) < 200 * MIB
    assert sampler.process_peaks[os.getpid()] >= alone - MIB


def test_a_peak_between_two_samples_is_the_kernels() -> None:
    with MemorySampler(3600) as sampler:
        touched(peak_rss() - current_rss() + 50 * MIB).close()
        assert sampler.rss_bytes < peak_rss() - 40 * MIB
    assert sampler.peak_bytes >= peak_rss() - MIB


def test_a_fork_that_has_not_begun_its_program_is_counted_once() -> None:
    """Each program is started by one, which shares all pages with us for a moment."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * MIB


def test_the_sampler_ends_with_its_block() -> None:
    with pytest.raises(ZeroDivisionError), MemorySampler(0.01) as sampler:
        raise ZeroDivisionError
    last = sampler.rss_bytes
    memory = touched(16 * MIB)
    time.sleep(0.05)
    assert sampler.rss_bytes == last
    memory.close()


def test_a_process_that_is_gone_is_an_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(OSError, match="No such file"):
        current_rss(child.pid)


def test_phases_have_their_time_and_the_memory_at_their_end() -> None:
    log, before = PhaseLog(), current_rss()
    with log.phase("load"):
        memory = touched(32 * MIB)
        time.sleep(0.02)
    with suppress(ZeroDivisionError), log.phase("release"):
        memory.close()
        raise ZeroDivisionError
    load, release = log.phases
    assert (load.name, release.name) == ("load", "release")
    assert 20 <= load.ms < 5000
    assert load.rss_bytes > before + 31 * MIB
    assert release.rss_bytes < load.rss_bytes - 25 * MIB


def test_nothing_of_it_needs_more_than_the_standard_library() -> None:
    code = "import sys, edgeglm.memory; print('msgspec' in sys.modules or 'numpy' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True) == "False\n"
