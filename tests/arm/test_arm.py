"""The demo's bundle on Arm: the same words and action as on this machine, in a limited address space.

Run by ``make test-arm``; left out of ``make test``, because it needs a network the first time and emulates a CPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.errors import UnsupportedError
from edgeglm.export.burn.userland import Userland, set_up
from edgeglm.export.write.pyz import WHEELS
from tests.cli.commands import check_failure, end, run, start
from tests.extras import need_tflite
from tests.runtimes.demo import demo_bundle

Capture = pytest.CaptureFixture[str]
MIB = 1 << 20


@pytest.fixture(scope="module")
def arm() -> Userland:
    try:
        return set_up(WHEELS.split())
    except UnsupportedError as error:
        pytest.skip(f"no Arm user land: {error}")


@pytest.fixture(scope="module")
def bundle(arm: Userland, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("arm") / "bundle", "rpi5", "auto")


def test_the_user_land_is_arm_and_its_address_space_can_be_limited(arm: Userland) -> None:
    done = arm.python(["-c", "import platform; print(platform.machine())"])
    assert (done.out, done.err) == ("aarch64\n", "")
    limited = arm.python(["-c", "bytes(256 << 20)"], 256 * MIB)
    assert limited.err.endswith("MemoryError\n")


def test_answers_in_fp32_are_the_same_as_here(tmp_path: Path, arm: Userland, capsys: Capture) -> None:
    bundle = demo_bundle(tmp_path / "bundle", "rpi5", "fp32")
    options = ["--via", "qemu", "--limit", 2, "--max-ram", "320MiB", "--json"]
    status, out, err = run(capsys, "burn-test", bundle, *options)
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["passed"], result["emulated"], result["memory_limit_bytes"]) == (True, True, 320 * MIB)
    for answer in result["answers"]:
        here, there = answer["here"], answer["there"]
        for key in ("text", "action", "prompt_tokens", "generated_tokens", "state_bytes"):
            assert here[key] == there[key]
        assert here["action"]["action"] == "Tap"


def test_answers_in_int8_are_those_of_the_original(bundle: Path, capsys: Capture) -> None:
    """An activation that is rounded otherwise, by the last bit of a float, may change a digit of a tap: it is alike."""
    status, out, err = run(capsys, "burn-test", bundle, "--via", "qemu", "--limit", 2, "--max-ram", "320MiB", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["passed"], result["self_test"]["passed"]) == (True, True)
    for answer in result["answers"]:
        assert answer["alike"]
        assert answer["there"]["action"]["action"] == answer["here"]["action"]["action"] == "Tap"


def test_an_answer_of_litert_in_int8_is_alike(
    arm: Userland, tmp_path_factory: pytest.TempPathFactory, capsys: Capture
) -> None:
    need_tflite()
    target = tmp_path_factory.mktemp("arm-tflite") / "bundle"
    assert run(capsys, "export", "--target", "rpi5", "--format", "tflite", "--context", 512, "-o", target)[0] == 0
    status, out, err = run(capsys, "burn-test", target, "--via", "qemu", "--limit", 1, "--json")
    assert (status, err) == (0, "")
    (answer,) = json.loads(out)["answers"]
    assert answer["alike"]
    assert answer["there"]["action"]["action"] == answer["here"]["action"]["action"] == "Tap"
    assert {module["engine"] for module in answer["there"]["modules"]} == {"litert"}


@pytest.mark.parametrize("memory", ["60MiB", "160MiB"])
def test_a_limit_that_is_too_low_ends_with_5(bundle: Path, memory: str, capsys: Capture) -> None:
    done = run(capsys, "burn-test", bundle, "--limit", 1, "--max-ram", memory)
    check_failure(done, 5, f"qemu, cortex-a76: {memory} of memory are too little there: ")


def test_an_interrupt_ends_the_emulator(bundle: Path) -> None:
    process = start("burn-test", bundle)
    deadline, emulators = time.monotonic() + 120, list[int]()
    while not emulators and time.monotonic() < deadline:
        emulators = [pid for pid in children_of(process.pid) if b"qemu-aarch64" in command_line(pid)]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "edgeglm: interrupted\n")
    assert emulators
    assert not any(b"qemu-aarch64" in command_line(pid) for pid in emulators)


def children_of(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return list(map(int, done.stdout.split()))


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_without_a_network_the_first_time_is_one_line(bundle: Path, tmp_path: Path) -> None:
    """A proxy that is not there, as good as no network."""
    nowhere = {
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "all_proxy": "http://127.0.0.1:9",
    }
    environment = {**os.environ, **nowhere, "XDG_CACHE_HOME": str(tmp_path)}
    done = end(start("burn-test", bundle, env=environment))
    check_failure(done, 3, "qemu: apt-get update .* ended with 100: .*; the first time it takes a network: connect")
    assert not (tmp_path / "edgeglm/aarch64/recipe").exists()
