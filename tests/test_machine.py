"""The machine's facts, read from made-up /proc and /sys trees and from the real ones."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from edgeglm.errors import UnsupportedError
from edgeglm.machine import read_machine

GIB = 2**30
MEMINFO = f"MemTotal: {8 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {6 * GIB // 1024} kB\n"
X86 = "processor : 0\nmodel name : Some CPU @ 2GHz\nflags : fpu avx2 avx512_vnni amx_tile amx_int8\n"
X86_SECOND = "\nprocessor : 1\nmodel name : Other CPU\nflags : fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16 sve\nCPU part\t: 0xd0b\n"


def make_root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/cpuinfo": X86, "proc/meminfo": MEMINFO, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_an_x86_cpu_is_named_and_its_features_mapped(tmp_path: Path) -> None:
    machine = read_machine(make_root(tmp_path, {"proc/cpuinfo": X86 + X86_SECOND}))
    assert machine.cpu_model == "Some CPU @ 2GHz"
    assert machine.cpu_features == ("amx", "avx2", "avx512_vnni")


def test_an_arm_cpu_takes_the_board_as_its_name(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"proc/cpuinfo": ARM, "proc/device-tree/model": "Raspberry Pi 5 Model B\0"})
    machine = read_machine(root)
    assert machine.cpu_model == "Raspberry Pi 5 Model B"
    assert machine.cpu_features == ("bf16", "dotprod", "i8mm", "neon", "sve")


@pytest.mark.parametrize(
    ("cpuinfo", "kernels"),
    [
        ("flags : avx2 avx512bw avx512_vnni amx_tile amx_int8", "amx"),
        ("flags : avx2 avx512bw avx512_vnni", "avx512_vnni"),
        ("flags : avx2 avx_vnni", "avx_vnni"),
        ("flags : avx2 avx512bw", "avx512"),
        ("flags : avx2", "avx2"),
        ("flags : sse4_1", "none"),
        ("Features : asimd asimddp i8mm", "i8mm"),
        ("Features : asimd asimddp", "dotprod"),
        ("Features : asimd", "neon"),
    ],
)
def test_int8_kernels_are_the_fastest_that_the_cpu_has(tmp_path: Path, cpuinfo: str, kernels: str) -> None:
    machine = read_machine(make_root(tmp_path, {"proc/cpuinfo": f"processor : 0\n{cpuinfo}\n"}))
    assert machine.int8_kernels == kernels


def test_a_cpu_without_name_or_features_is_unknown(tmp_path: Path) -> None:
    machine = read_machine(make_root(tmp_path, {"proc/cpuinfo": "processor : 0\n"}))
    assert machine.cpu_model == "unknown"
    assert machine.cpu_features == ()


def test_without_a_cgroup_limit_memory_is_the_machines(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}
    machine = read_machine(make_root(tmp_path, files))
    assert (machine.memory_total_bytes, machine.memory_available_bytes) == (8 * GIB, 6 * GIB)


def test_the_tightest_cgroup_v2_limit_counts_and_its_inactive_cache_is_free(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/session\n",
        "sys/fs/cgroup/user/session/memory.max": "max\n",
        "sys/fs/cgroup/user/session/memory.current": "1\n",
        "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{2 * GIB}\n",
        "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    machine = read_machine(make_root(tmp_path, files))
    assert (machine.memory_total_bytes, machine.memory_available_bytes) == (4 * GIB, 3 * GIB)


def test_a_cgroup_v1_limit_counts_where_the_host_path_is_not_mounted(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "7:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 1024\n",
    }
    machine = read_machine(make_root(tmp_path, files))
    assert (machine.memory_total_bytes, machine.memory_available_bytes) == (2 * GIB, GIB + 1024)


def test_a_cgroup_over_its_limit_leaves_nothing_available(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB + 4096}\n",
    }
    assert read_machine(make_root(tmp_path, files)).memory_available_bytes == 0


def test_a_system_without_proc_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"^/proc/meminfo: lacks a field; run edgeglm on Linux$"):
        read_machine(tmp_path)


def test_this_machine_is_within_its_own_bounds() -> None:
    machine = read_machine()
    assert machine.architecture == platform.machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 <= machine.memory_available_bytes <= machine.memory_total_bytes


def test_cores_are_those_of_the_affinity_mask() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert read_machine().cores == 1
    finally:
        os.sched_setaffinity(0, allowed)
