"""A manifest with any one value replaced, and sealed again: refused in one line that names the key, or run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeglm.cli.main import main
from edgeglm.errors import DamagedFileError
from edgeglm.manifest import BLANK_SEAL, MANIFEST
from tests.adversary.fuzzer import Fuzzer
from tests.adversary.mutate import mutate

ALLOWED = {0, 2, 3, 5, 6}
PROMPT = ("--prompt", "Select OK", "--max-new-tokens", "2")
# What else a command is given: a prompt, and what ends it in a moment once it has taken the bundle.
OPTIONS: dict[str, tuple[str, ...]] = {
    "run": PROMPT,
    "validate": ("--max-ram", "1MiB"),
    "burn-test": ("--via", "nowhere"),
    "bench": ("--requests", "2", "--max-new-tokens", "2"),
}


def seal(tree: dict[str, Any]) -> bytes:
    """Return a manifest's bytes, sealed as whoever can write all of a bundle can."""
    tree["seal"] = BLANK_SEAL
    head, _, tail = json.dumps(tree).rpartition(BLANK_SEAL)
    return f"{head}{hashlib.sha256((head + BLANK_SEAL + tail).encode()).hexdigest()}{tail}".encode()


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def tree(copy: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((copy / MANIFEST).read_bytes())
    return parsed


def test_any_value_replaced_is_a_line_or_an_answer(
    copy: Path, tree: dict[str, Any], fuzz: Callable[[str], Fuzzer], capsys: pytest.CaptureFixture[str]
) -> None:
    fuzzer = fuzz("a value of a sealed manifest replaced")
    for _ in fuzzer.attempts():
        changed, attempt = mutate(tree, fuzzer.random)
        (copy / MANIFEST).write_bytes(seal(changed))
        command = fuzzer.random.choice(["run", "run", "verify", "inspect", "validate", "burn-test"])
        status = main([command, str(copy), *OPTIONS.get(command, ())])
        out, err = capsys.readouterr()
        fuzzer.judge(
            f"{command}: {attempt}", status, "" if status in (5, 6) and command == "run" else out, err, ALLOWED
        )


def test_any_value_replaced_is_a_line_of_run_pyz_too(
    copy: Path, tree: dict[str, Any], fuzz: Callable[[str], Fuzzer]
) -> None:
    fuzzer = fuzz("the same, by run.pyz")
    for _ in fuzzer.attempts():
        changed, attempt = mutate(tree, fuzzer.random)
        (copy / MANIFEST).write_bytes(seal(changed))
        line = [sys.executable, str(copy / "run.pyz"), *PROMPT]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False, timeout=60)
        fuzzer.judge(attempt, done.returncode, done.stdout, done.stderr, ALLOWED)


def test_any_bytes_of_a_manifest_are_a_line(
    copy: Path, tree: dict[str, Any], fuzz: Callable[[str], Fuzzer], capsys: pytest.CaptureFixture[str]
) -> None:
    fuzzer, data = fuzz("bytes of a manifest changed"), (copy / MANIFEST).read_bytes()
    for _ in fuzzer.attempts():
        changed, chance = bytearray(data), fuzzer.random
        place, kind = chance.randrange(len(data)), chance.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[place : place + chance.randrange(1, 40)] = chance.randbytes(chance.randrange(40))
        elif kind == 2:
            del changed[place:]
        else:
            changed[place:place] = chance.choice([b"[" * 5000, b"9" * 5000, b'"\\u001b":1,', b"NaN", b"\xff", b"\x00"])
        (copy / MANIFEST).write_bytes(changed)
        command = chance.choice(["verify", "inspect", "run", "validate", "burn-test", "bench", "build"])
        status = main([command, str(copy), *OPTIONS.get(command, ())])
        out, err = capsys.readouterr()
        fuzzer.judge(f"{command}: kind {kind} at {place}", status, out, err, {3, 6} if changed != data else ALLOWED)


def test_a_bit_of_run_pyz_is_a_line(bundle: Path, tmp_path: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    """All but what Python reads before the first line of it runs (docs/bundle.md)."""
    fuzzer, data = fuzz("a bit of run.pyz flipped"), (bundle / "run.pyz").read_bytes()
    (tmp_path / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes())
    beginning, end = data.index(b"PK\x03\x04", 40), data.index(b"PK\x01\x02")
    for _ in fuzzer.attempts():
        place = fuzzer.random.randrange(beginning, end)
        damaged = bytearray(data)
        damaged[place] ^= 1 << fuzzer.random.randrange(8)
        (tmp_path / "run.pyz").write_bytes(damaged)
        line = [sys.executable, str(tmp_path / "run.pyz"), *PROMPT]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False, timeout=60)
        fuzzer.judge(f"byte {place}", done.returncode, done.stdout, done.stderr, {6})


def test_a_file_that_changes_while_a_runner_lives_is_a_line(
    bundle: Path, tmp_path: Path, fuzz: Callable[[str], Fuzzer]
) -> None:
    runners, messages = (
        pytest.importorskip("edgeglm.runtimes.core.runner"),
        pytest.importorskip("edgeglm.runtimes.text.messages"),
    )
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    fuzzer = fuzz("a file changed under a runner that lives")
    question = [messages.message("user", "Select OK")]
    with runners.Runner(copy) as runner:
        right = runner.answer(question, max_new_tokens=8).text
        for _ in fuzzer.attempts():
            relative = fuzzer.random.choice(["decoder/model.onnx", "decoder/weights.bin", "embedding/rows.bin"])
            path, kind = copy / relative, fuzzer.random.randrange(3)
            data = path.read_bytes()
            place = fuzzer.random.randrange(len(data))
            if kind == 0:
                with open(path, "r+b") as file:
                    file.seek(place)
                    file.write(bytes([data[place] ^ 1 << fuzzer.random.randrange(8)]))
            elif kind == 1:
                (tmp_path / "new").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
                os.replace(tmp_path / "new", path)
            else:
                path.unlink()
            try:
                runner.answer(question, max_new_tokens=8)
                fuzzer.fault(f"{relative} at {place}", "unseen")
            except DamagedFileError:
                fuzzer.saw("refused (6)")
            path.write_bytes(data)
            if runner.answer(question, max_new_tokens=8).text != right:
                fuzzer.fault(f"{relative} at {place}", "another answer behind it")
