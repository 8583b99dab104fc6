"""The demo's bundle on Arm: the same words and action as on this machine, in a limited address space too.

Run by ``make test-arm``; left out of ``make test``, because it needs a network the first time and emulates a CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.devices.loader import load_profile
from edgeglm.export.demo.samples import DATA, read_samples
from edgeglm.export.locate import DEMO, DEMO_NAME
from edgeglm.export.pipeline.export import export
from edgeglm.export.pipeline.forecast import predict
from edgeglm.export.pipeline.prepare import Request, open_export, prepare
from tests.arm.userland import Unavailable, Userland, set_up
from tests.extras import need_tflite

MIB = 1 << 20


@pytest.fixture(scope="module")
def arm() -> Userland:
    try:
        return set_up()
    except Unavailable as error:
        pytest.skip(f"no Arm user land: {error}")


def program_of(folder: Path, format_: str) -> Path:
    request = Request(DEMO, DEMO_NAME, load_profile("rpi5"), context=512, is_demo=True, format=format_)
    prepared = prepare(open_export(request))
    export(prepared, folder, predict(prepared), lambda _: None)
    return folder / "run.pyz"


@pytest.fixture(scope="module")
def program(arm: Userland, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of(tmp_path_factory.mktemp("arm") / "bundle", "onnx")


@pytest.fixture(scope="module")
def tflite_program(arm: Userland, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_tflite()
    return program_of(tmp_path_factory.mktemp("arm-tflite") / "bundle", "tflite")


def test_the_user_land_is_arm_and_its_address_space_can_be_limited(arm: Userland) -> None:
    done = arm.python(["-c", "import platform; print(platform.machine())"])
    assert (done.stdout, done.stderr) == ("aarch64\n", "")
    limited = arm.python(["-c", "bytes(256 << 20)"], 256 * MIB)
    assert limited.stderr.endswith("MemoryError\n")


@pytest.mark.parametrize(("screen", "memory"), [(1, None), (2, 256 * MIB)])
def test_an_answer_is_the_same_as_here(arm: Userland, program: Path, screen: int, memory: int | None) -> None:
    check_answer(arm, program, screen, memory)


def test_an_answer_of_litert_is_the_same_as_here(arm: Userland, tflite_program: Path) -> None:
    check_answer(arm, tflite_program, 1, None)


def check_answer(arm: Userland, program: Path, screen: int, memory: int | None) -> None:
    prompt = list(read_samples(DATA / "evaluation.jsonl", screen + 1))[screen].prompt
    picture = DATA / "evaluation" / f"{screen:04d}.webp"
    arguments = [str(program), "--image", str(picture), "--prompt", prompt, "--json"]
    here = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    there = arm.python(arguments, memory)
    assert there.returncode == 0, there.stderr
    assert told(there.stdout) == told(here.stdout)
    assert told(here.stdout)["action"]["action"] == "Tap"


def told(stdout: str) -> dict[str, Any]:
    """What a run answered, without what it took."""
    result = json.loads(stdout)
    return {key: result[key] for key in ("text", "action", "prompt_tokens", "generated_tokens", "state_bytes")}
