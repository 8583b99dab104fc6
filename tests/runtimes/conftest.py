"""One exact bundle of the demo for all of the runner's tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.extras import need_tflite

CGROUPS = Path("/sys/fs/cgroup")
# Returns a command as it runs in a control group of so many bytes.
HardLimit = Callable[[int, list[str]], list[str]]


@pytest.fixture
def hard_limit() -> Iterator[HardLimit]:
    """A new control group of memory, v2 or v1."""
    root = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
    group = root / f"edgeglm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    limits = [group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists()]

    def inside(budget: int, command: list[str]) -> list[str]:
        limits[0].write_text(str(budget))
        return ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]

    try:
        if not limits:
            pytest.skip("the control groups here do not limit memory")
        yield inside
    finally:
        group.rmdir()


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in fp32, which answers as transformers does."""
    demo = pytest.importorskip("tests.runtimes.demo", reason="exports, which needs torch")
    folder: Path = demo.demo_bundle(tmp_path_factory.mktemp("exact") / "bundle", "cpu", "fp32")
    return folder


@pytest.fixture(scope="session")
def exact_tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as TFLite, but for a vision tower in INT8."""
    need_tflite()
    demo = pytest.importorskip("tests.runtimes.demo", reason="exports, which needs torch")
    folder: Path = demo.demo_bundle(
        tmp_path_factory.mktemp("tflite") / "bundle", "cpu", "decoder=fp32,vision=int8", "tflite"
    )
    return folder
