"""``edgeglm burn-test``: over a real ssh, and what can go wrong on the way. tests/arm has qemu."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.bundle import read_manifest
from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.burn.answers import _Answer, _printed
from edgeglm.export.burn.ssh import Ssh
from edgeglm.machine import describe_kernels, read_machine
from edgeglm.manifest import MANIFEST
from edgeglm.runtimes.core.self_test import FILE, SelfTest
from tests.cli.commands import check_failure, end, run, start
from tests.export.burn.sshd import HOST, Server, free_port, missing, serve
from tests.runtimes.demo import demo_bundle
from tests.runtimes.test_self_test import sealed

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("burn") / "bundle", "rpi5", "int8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if why := missing():
        pytest.skip(why)
    with serve(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def board(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server as HOST, on which nothing may be left."""
    monkeypatch.setenv("PATH", server.path)
    yield server
    assert folders(server) == []


def folders(server: Server) -> list[Path]:
    return list((server.home / ".cache/edgeglm").glob("burn.*"))


def via_ssh(bundle: Path, *options: object, python: str = sys.executable) -> list[object]:
    return ["burn-test", bundle, "--via", "ssh", HOST, "--python", python, *options]


def test_a_board_answers_as_this_machine_within_its_memory(bundle: Path, board: Server, capsys: Capture) -> None:
    status, out, err = run(capsys, *via_ssh(bundle, "--limit", 2, "--json"))
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert {name: result[name] for name in ("bundle", "target", "device", "emulated", "passed")} == {
        "bundle": str(bundle),
        "target": "rpi5",
        "device": f"ssh {HOST}",
        "emulated": False,
        "passed": True,
    }
    assert result["memory_limit_bytes"] == 6 << 30
    assert [answer["picture"] for answer in result["answers"]] == ["0000.webp", "0001.webp"]
    for answer in result["answers"]:
        assert answer["same"] is True
        assert answer["here"]["text"] == answer["there"]["text"]
        assert answer["there"]["action"]["action"] == "Tap"
        assert answer["there"]["decode_tokens_per_second"] > 0
    proof = result["self_test"]
    assert (proof["passed"], proof["bundle"], len(proof["probes"])) == (True, str(bundle), 8)
    assert proof["int8_kernels"] == read_machine().int8_kernels
    peaks = [answer["there"]["peak_rss_bytes"] for answer in result["answers"]]
    assert result["peak_rss_bytes"] == max(*peaks, proof["peak_rss_bytes"])


def test_the_table_and_the_host_before_the_bundle(bundle: Path, board: Server, capsys: Capture) -> None:
    options = ["--via", "ssh", HOST, "--limit", 1, "--python", sys.executable]
    status, out, err = run(capsys, "burn-test", *options, bundle)
    assert (status, err) == (0, "")
    heading, row, _, device, answers, proof, kernels, memory = out.splitlines()
    assert heading.split()[:4] == ["SCREEN", "HERE", "THERE", "SAME"]
    assert row.startswith("0000.webp  Tap element=[")
    assert device == f"device   ssh {HOST}"
    assert answers == "answers  1 of 1 as on this machine"
    assert re.fullmatch(r"proof    self-test passed: [\d.]+% of the sure tokens are the original's", proof)
    assert kernels == f"int8     {describe_kernels(read_machine().int8_kernels)}"
    assert memory.endswith("limit 6GiB for rpi5")


def test_another_answer_ends_with_4_and_says_both(bundle: Path, board: Server, tmp_path: Path, capsys: Capture) -> None:
    """A board whose Python hands the runner another prompt: of two, argparse takes the last."""
    other = tmp_path / "python"
    other.write_text(
        f'#!/bin/sh\n[ "$2" = --prompt ] && set -- "$@" --prompt "Open Maps"\nexec {sys.executable} "$@"\n'
    )
    other.chmod(0o755)
    status, out, err = run(capsys, *via_ssh(bundle, "--limit", 1, python=str(other)))
    assert status == 4
    assert "  NO  " in out
    assert re.search(rf"answers 0000.webp by .+ on ssh {HOST}, and by Tap element=\[", err)
    assert err.count("\n") == 1


@pytest.mark.parametrize("memory", ["60MiB", "150MiB"])
def test_a_limit_that_is_too_low_ends_with_5(bundle: Path, board: Server, memory: str, capsys: Capture) -> None:
    arguments = via_ssh(bundle, "--limit", 1, "--max-ram", memory)
    check_failure(run(capsys, *arguments), 5, f"ssh {HOST}: {memory} of memory are too little there: ")


@pytest.mark.parametrize(
    ("python", "why"),
    [
        (
            f"{sys.executable} -S -E",
            rf"ssh {HOST}: needs \w+, which is not installed; run pip install numpy pillow ",
        ),
        ("python9", f"ssh {HOST}: has no python9; install Python 3.10 or later there, or name it by --python"),
    ],
    ids=["no wheels", "no Python"],
)
def test_what_the_board_lacks_is_said_in_one_line(
    bundle: Path, board: Server, python: str, why: str, capsys: Capture
) -> None:
    check_failure(run(capsys, *via_ssh(bundle, python=python)), 3, why)


def test_a_board_that_cannot_be_reached(bundle: Path, board: Server, capsys: Capture) -> None:
    arguments = ["burn-test", bundle, "--via", "ssh", f"ssh://127.0.0.1:{free_port()}"]
    check_failure(run(capsys, *arguments), 3, r"cannot be reached: .*Connection refused; see that 'ssh .* true' works")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"text": "a"}', "[" * 100_000, '{"action": 7, "text": "a", "peak_rss_bytes": "x"}']
)
def test_what_is_no_answer_is_one_line(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"board: the runner printed no result but .*; run python3 run.pyz"):
        _printed("board", text, _Answer)


@pytest.mark.parametrize(
    ("program", "why"),
    [("echo hello", "the runner printed no result but 'hello"), ("yes", "it writes more than 16MiB, and was ended")],
)
def test_a_board_that_prints_something_else_is_one_line(
    bundle: Path, board: Server, program: str, why: str, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\n[ "$2" = --help ] || exec {program}\n')
    other.chmod(0o755)
    check_failure(run(capsys, *via_ssh(bundle, "--limit", 1, python=str(other))), 3, f"ssh {HOST}: {why}")


def exchange(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [Path.unlink, exchange, lambda path: os.truncate(path, 10)])
def test_a_file_that_changes_behind_the_check_is_one_line(
    change: Callable[[Path], object], bundle: Path, board: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is changed when its size is known, as late as can be."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    victim = folder / "decoder/model.onnx"
    size = victim.stat().st_size
    with Ssh(HOST, sys.executable) as device:
        change(victim)
        monkeypatch.setattr("edgeglm.export.burn.remote._size", lambda _: size)
        told = tarfile.TarInfo("model.onnx")
        told.size = size
        monkeypatch.setattr("tarfile.TarFile.gettarinfo", lambda *_, **__: told)
        with pytest.raises(DamagedFileError, match=r"decoder/model\.onnx: cannot be read: .*; copy the bundle again"):
            device.push([(victim, "bundle/decoder/model.onnx")])


def test_an_interrupt_leaves_nothing_on_the_board(bundle: Path, board: Server) -> None:
    """It comes while the runner is at work there, held up by a Python that sleeps before it does."""
    slow = board.home / "python"
    slow.write_text(f'#!/bin/sh\n[ "$2" = --help ] || exec {sys.executable} -c "import time; time.sleep(300)"\n'
                    f'exec {sys.executable} "$@"\n')  # fmt: skip
    slow.chmod(0o755)
    process = start(*via_ssh(bundle, python=str(slow)), env=dict(os.environ))
    pid = running(board)
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert (status, out, err) == (130, "", "edgeglm: interrupted\n")
    assert not Path(f"/proc/{pid}").exists()


def running(board: Server) -> int:
    """The process of the sleeping Python."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in (board.home / ".cache/edgeglm").glob("burn.*/pid"):
            pid = int(file.read_text() or 0)
            if b"time.sleep" in command_line(pid):
                return pid
        time.sleep(0.05)
    raise AssertionError("it does not run")


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--via", "ssh"], "--via ssh: names no host; write --via ssh HOST"),
        (["--via", "ssh", "-oProxyCommand=x"], "burn-test: No such option '-o'"),
        (["--via", "usb"], "--via usb: is not a backend; choose one of adb, qemu, ssh"),
        (["--max-ram", "much"], "--max-ram much: is not a size"),
        (["--max-ram", ""], "--max-ram '': is not a size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_may_get_wrong(bundle: Path, options: list[str], why: str, capsys: Capture) -> None:
    check_failure(run(capsys, "burn-test", bundle, *options), 2, why)


def test_adb_without_a_device(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    try:
        subprocess.run(["adb", "version"], capture_output=True, check=True)
    except OSError:
        pytest.skip("needs adb: apt install adb")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    try:
        done = run(capsys, "burn-test", bundle, "--via", "adb")
        check_failure(
            done, 3, "adb: has no device that it can use: no devices.* found; connect one, and see adb devices"
        )
    finally:
        subprocess.run(["adb", "kill-server"], capture_output=True, check=False)


def test_without_ssh_or_adb_the_line_says_how_to_get_them(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for via, package in ((["ssh", "board"], "openssh-client"), (["adb"], "adb")):
        done = run(capsys, "burn-test", bundle, "--via", *via)
        check_failure(done, 3, f"{via[0]}: is not installed; run apt install {package}")


def test_a_bundle_without_a_self_test_is_compared_all_the_same(
    bundle: Path, board: Server, tmp_path: Path, capsys: Capture
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = read_manifest(folder)
    files = {name: file for name, file in manifest.files.items() if not name.startswith("assets/")}
    (folder / MANIFEST).write_bytes(msgspec.structs.replace(manifest, files=files).to_bytes())
    status, out, _ = run(capsys, *via_ssh(folder, "--limit", 1, "--json"))
    result = json.loads(out)
    assert (status, result["self_test"], result["passed"]) == (0, None, True)


def test_a_failed_self_test_ends_with_4_and_is_printed(
    bundle: Path, board: Server, tmp_path: Path, capsys: Capture
) -> None:
    test = msgspec.json.decode((bundle / FILE).read_bytes(), type=SelfTest)
    probes = [msgspec.structs.replace(probe, likeliest=probe.tokens[::-1]) for probe in test.probes]
    folder = sealed(bundle, tmp_path / "bundle", SelfTest(tuple(probes)).to_bytes())
    status, out, err = run(capsys, *via_ssh(folder, "--limit", 1))
    assert status == 4
    assert "\nproof    self-test FAILED: " in out
    assert re.search(rf"fails its self-test on ssh {HOST}: [\d.]+% of the sure tokens are the original's; ", err)
