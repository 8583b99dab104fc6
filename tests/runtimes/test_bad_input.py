"""What the program says of a bundle, a picture or a prompt that cannot be: one line, its exit code, and no answer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image

from edgeglm.manifest import MANIFEST
from tests.bundles import reseal
from tests.cli.commands import LINE
from tests.runtimes.demo import SCREEN
from tests.runtimes.pictures import write_png

PROGRAMS = [["run.pyz"], ["-m", "edgeglm.runtimes"], ["-m", "edgeglm", "run"]]
WHEELS = "numpy pillow tokenizers onnxruntime msgspec jinja2"
PIPE = 4096  # bytes, the least there is: a longer answer waits for its reader
Change = Callable[[dict[str, Any]], object]


def command(bundle: Path, *arguments: str, program: list[str] | None = None) -> list[str]:
    if program is None or program == ["run.pyz"]:
        return [sys.executable, str(bundle / "run.pyz"), *arguments]
    return [sys.executable, *program, str(bundle), *arguments]


def refuse(line: list[str], status: int, why: str, environment: dict[str, str] | None = None) -> None:
    """Run a command, which must fail so."""
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert LINE.fullmatch(done.stderr), done.stderr
    assert re.search(why, done.stderr), done.stderr


@pytest.fixture
def copy(exact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exact, tmp_path / "copy"))


FILES = [MANIFEST, *(f"{name}/{file}" for name in ("decoder", "vision") for file in ("model.onnx", "weights.bin"))]
FILES += ["embedding/rows.bin", "tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"]


@pytest.mark.parametrize("relative", FILES)
def test_a_bundle_with_a_flipped_bit_is_never_run(copy: Path, relative: str) -> None:
    data = bytearray((copy / relative).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / relative).write_bytes(data)
    refuse(command(copy, "--prompt", "x"), 6, re.escape(relative))


def test_a_flipped_bit_in_the_program_itself_is_found_by_the_others(copy: Path) -> None:
    data = bytearray((copy / "run.pyz").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "run.pyz").write_bytes(data)
    refuse(
        command(copy, "--prompt", "x", program=["-m", "edgeglm.runtimes"]), 6, r"run\.pyz: is damaged or was changed"
    )


def leave(tree: dict[str, Any]) -> None:
    tree["files"]["../weights.bin"] = tree["files"].pop("decoder/weights.bin")


MANIFESTS: dict[str, tuple[Change, int, str]] = {
    "a path that leaves the bundle": (leave, 6, r"manifest\.json: .*files.*; copy the bundle again"),
    "a newer schema": (lambda tree: tree.update(bundle_schema=99), 3, r"has schema 99, .*; update edgeglm: pip"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_cannot_be_is_refused(copy: Path, name: str) -> None:
    change, status, why = MANIFESTS[name]
    reseal(copy, change)
    refuse(command(copy, "--prompt", "x"), status, why)


def test_a_link_that_leaves_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "decoder/weights.bin").rename(tmp_path / "weights.bin")
    (copy / "decoder/weights.bin").symlink_to(tmp_path / "weights.bin")
    refuse(command(copy, "--prompt", "x"), 6, r"decoder/weights\.bin: is a link that leaves the bundle")


@pytest.mark.parametrize("program", PROGRAMS[1:], ids=" ".join)
@pytest.mark.parametrize(("name", "why"), [("", "is not a bundle: it has no manifest"), ("gone", "No such file")])
def test_what_is_no_bundle_is_refused(tmp_path: Path, program: list[str], name: str, why: str) -> None:
    refuse(command(tmp_path / name, "--prompt", "x", program=program), 2, why)


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_a_missing_engine_is_said_with_the_line_that_installs_it(
    exact: Path, tmp_path: Path, program: list[str]
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(name='onnxruntime')")
    path = os.pathsep.join([str(tmp_path), *([] if program == ["run.pyz"] else [os.environ.get("PYTHONPATH", "")])])
    install = f"run pip install {WHEELS if program == ['run.pyz'] else 'edgeglm'}\n"
    line = command(exact, "--prompt", "x", program=program)
    refuse(line, 3, f"needs onnxruntime, which is not installed; {install}", {**os.environ, "PYTHONPATH": path})


PROMPTS = {
    "empty": ("", 2, "the prompt: is empty"),
    "blank": (" \n\t", 2, "the prompt: is empty"),
    "too long": (
        "1" * 9000,
        5,
        r"9006 tokens of prompt and 128 of answer are more than the 8192 .*; shorten the prompt",
    ),
    "a picture's token": ("<|image|>", 2, "holds the image token"),
    "not UTF-8": (os.fsdecode(b"\xff\xfe"), 2, "the prompt: is not UTF-8"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_that_cannot_be_is_refused(exact: Path, name: str) -> None:
    prompt, status, why = PROMPTS[name]
    refuse(command(exact, "--prompt", prompt), status, why)


def png(width: int, height: int, rows: int) -> Callable[[Path], object]:
    return lambda path: write_png(path, width, height, rows)


def claim_webp(path: Path) -> None:
    """The largest size that 14 bits each can say, minus one (WebP Lossless Bitstream Specification, section 3)."""
    Image.new("RGB", (8, 8)).save(path, "WEBP", lossless=True)
    data = bytearray(path.read_bytes())
    assert data[12:16] == b"VP8L"
    data[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    path.write_bytes(data)


DAMAGED, LARGE, NONE = "is not a readable image", "has more pixels than", "it is no WebP, PNG or JPEG"
BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "20,000 x 20,000": (png(20_000, 20_000, rows=20_000), LARGE),
    "a claim of 50,000 x 50,000": (png(50_000, 50_000, rows=1), LARGE),
    "a WebP's claim of 16,383 x 16,383": (claim_webp, LARGE),
}
PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no picture": (lambda path: path.write_text("Select OK"), NONE),
    "empty": (lambda path: path.touch(), NONE),
    "truncated": (lambda path: path.write_bytes(SCREEN.read_bytes()[:-1]), DAMAGED),
    "a folder": (lambda path: path.mkdir(), "it is not a regular file"),
    "missing": (lambda path: None, "No such file or directory"),
    "a pipe": (os.mkfifo, "it is not a regular file"),
    "0x0": (png(0, 0, rows=0), NONE),
    "another format": (lambda path: Image.new("L", (9, 9)).save(path, "EPS"), NONE),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_is_refused(exact: Path, tmp_path: Path, name: str) -> None:
    write, why = PICTURES[name]
    write(tmp_path / "p")
    refuse(command(exact, "--prompt", "x", "--image", str(tmp_path / "p")), 2, why)


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_is_too_large_is_refused_before_it_takes_memory(exact: Path, tmp_path: Path, name: str) -> None:
    write, why = BOMBS[name]
    write(tmp_path / "p")
    line = command(exact, "--prompt", "x", "--image", str(tmp_path / "p"))
    # With room for the program, but not for a picture of 400 million pixels.
    refuse(["sh", "-c", 'ulimit -v 1048576; exec "$@"', "sh", *line], 2, why)


@pytest.fixture
def endless(copy: Path) -> subprocess.Popen[bytes]:
    """A run of a bundle that knows no end of an answer: 3,000 tokens, which do not fit into the pipe."""
    reseal(copy, lambda tree: tree["generation"].update(eos_token_ids=[]))
    arguments = command(copy, "--prompt", "x", "--max-new-tokens", "3000")
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=PIPE)


def test_an_interrupt_while_text_streams_is_one_line(endless: subprocess.Popen[bytes]) -> None:
    with endless as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        told = process.stdout.read()
    assert (process.returncode, said) == (130, b"edgeglm: interrupted\n")
    assert b"peak RSS" not in told


def test_a_reader_that_goes_away_is_no_error(endless: subprocess.Popen[bytes]) -> None:
    with endless as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_folder_that_the_engine_cannot_name_is_not_called_damaged(copy: Path, program: list[str]) -> None:
    odd = copy.rename(copy.with_name(os.fsdecode(b"odd\xff")))
    refuse(command(odd, "--prompt", "x", program=program), 2, "has a path that is not UTF-8.*; rename its folder")
