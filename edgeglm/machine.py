"""Describe this machine: its CPU and the memory of a process, from Linux's ``/proc`` and cgroups."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeglm.errors import UnsupportedError

# The features that decide how fast a quantized kernel runs: the kernel's flag -> the feature's usual name
# (Linux: Documentation/arch/arm64/elf_hwcaps.rst, arch/x86/include/asm/cpufeatures.h).
FEATURES = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512bw": "avx512",
    "amx_int8": "amx",
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
# Features by which INT8 products are computed, the fastest first. Those of VNNI add four products in 32 bits; before
# them, x86 adds two in 16 bits, which saturate unless ONNX Runtime is told to take its exact kernels.
INT8_KERNELS = ("amx", "avx512_vnni", "avx_vnni", "avx512", "avx2", "i8mm", "dotprod", "neon")
SATURATING = ("avx512", "avx2")
# Of the memory that is available, where no budget is stated.
BUDGET_SHARE = 0.6


@dataclass(frozen=True)
class Machine:
    """The processor and the memory of this machine, within the limits set on this process.

    ``int8_kernels`` is the feature by which INT8 products are computed here, ``none`` if it has none that we know.
    """

    architecture: str
    cpu_model: str
    cpu_features: tuple[str, ...]
    int8_kernels: str
    cores: int
    memory_total_bytes: int
    memory_available_bytes: int


def processor_lines() -> Iterator[str]:
    """Yield what Linux says of the first core's kind and instructions."""
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if not line.strip():
                return
            if line.startswith(names):
                yield line.strip()


def read_machine(root: Path = Path("/")) -> Machine:
    """Read the machine's facts from ``/proc`` and ``/sys`` under ``root``.

    ``cores`` are those this process may run on; memory is bounded by its cgroup as well as by the machine.

    Raises:
        UnsupportedError: There is no Linux ``/proc``.
    """
    cpu = _fields(_text(root / "proc/cpuinfo"))
    features = _features(cpu.get("flags") or cpu.get("Features") or "")
    total, available = _memory(root)
    return Machine(
        architecture=platform.machine(),
        cpu_model=cpu.get("model name") or _board(root) or "unknown",
        cpu_features=features,
        int8_kernels=next((name for name in INT8_KERNELS if name in features), "none"),
        cores=len(os.sched_getaffinity(0)),
        memory_total_bytes=total,
        memory_available_bytes=available,
    )


def memory_budget(stated: int | None) -> int:
    """Return the bytes that all processes of a command may take: what is stated, or 60% of what is available."""
    return stated if stated is not None else int(BUDGET_SHARE * read_machine().memory_available_bytes)


def describe_kernels(kernels: str) -> str:
    """Say in words what computes INT8 products here."""
    if kernels == "none":
        return "no fast kernels"
    if kernels in SATURATING:
        return f"{kernels} without VNNI: exact kernels, slower than VNNI's"
    return f"{kernels} kernels"


def _features(flags: str) -> tuple[str, ...]:
    present = set(flags.split())
    return tuple(sorted({name for flag, name in FEATURES.items() if flag in present}))


def _board(root: Path) -> str:
    """Return the board's name, which Arm kernels give where x86 ones name the CPU."""
    return _text(root / "proc/device-tree/model").rstrip("\0\n")


def _memory(root: Path) -> tuple[int, int]:
    fields = _fields(_text(root / "proc/meminfo"))
    try:
        total, available = _kibibytes(fields["MemTotal"]), _kibibytes(fields["MemAvailable"])
    except KeyError as error:
        raise UnsupportedError("/proc/meminfo", "lacks a field", "run edgeglm on Linux") from error
    for limit, used in _cgroup_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return total, available


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, used) in bytes for the memory cgroup of this process and for each of its ancestors."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _walk(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _walk(
                root / "sys/fs/cgroup/memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )


def _walk(base: Path, path: str, limit_file: str, used_file: str, cache_key: str) -> Iterator[tuple[int, int]]:
    # In a container the path may be the host's, and not exist here; the base is then our own cgroup.
    leaf = base / path.lstrip("/")
    for folder in (leaf, *leaf.parents[: len(leaf.relative_to(base).parts)]):
        limit, used = _text(folder / limit_file).strip(), _text(folder / used_file).strip()
        if limit.isdigit() and used.isdigit():
            yield int(limit), int(used) - _inactive_file_cache(folder, cache_key)


def _inactive_file_cache(folder: Path, key: str) -> int:
    """Return the bytes of page cache that the kernel drops first, which do not count as used."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _fields(text: str) -> dict[str, str]:
    """Parse ``key : value`` lines; of a key that repeats, as in /proc/cpuinfo, the first value counts."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _kibibytes(value: str) -> int:
    return int(value.removesuffix("kB")) * 1024


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
