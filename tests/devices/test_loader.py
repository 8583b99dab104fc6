"""Reading profiles: by name, alias and path, and one line for everything that can be wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeglm.devices.loader import load_profile, read_profile
from edgeglm.errors import UsageError


def refusal(name_or_path: str) -> str:
    with pytest.raises(UsageError) as raised:
        load_profile(name_or_path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return tmp_path / "board.toml"


def test_the_example_of_the_docs_loads_by_its_path(board: Path, example: str) -> None:
    board.write_text(example)
    profile = load_profile(str(board))
    assert (profile.name, profile.memory.usable.value) == ("my-board", 12 << 30)
    assert profile.memory.bandwidth is not None
    assert profile.memory.bandwidth.value == 34_100_000_000
    assert profile == read_profile(board)


def test_a_path_needs_a_separator_or_the_suffix(tmp_path: Path, example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("board.toml", "board"):
        Path(path).write_text(example)
    assert load_profile("board.toml").name == load_profile("./board").name == "my-board"
    assert "is not a device profile" in refusal("board")


def test_a_byte_order_mark_is_read_over(board: Path, example: str) -> None:
    board.write_text(example, encoding="utf-8-sig")
    assert load_profile(str(board)).name == "my-board"


def test_an_inline_table_is_the_same_as_dotted_keys(board: Path, example: str) -> None:
    board.write_text(example)
    dotted = load_profile(str(board))
    cores = 'cores.value = 8\ncores.source = "Board manual v2, section 1.1"'
    assert cores in example
    board.write_text(example.replace(cores, 'cores = { value = 8, source = "Board manual v2, section 1.1" }'))
    assert load_profile(str(board)) == dotted


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qcs6940", "qcs6940: is not a device profile; did you mean qcs6490?"),
        ("jetsn", "did you mean jetson?"),
        ("toaster", "choose one of cpu, jetson, jetson-orin, "),
        ("", "'': is not a device profile; "),
    ],
)
def test_an_unknown_name(name: str, expected: str) -> None:
    assert expected in refusal(name)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # Keys
        ("[memory]", "[memroy]", "memroy: is not a key; did you mean memory?"),
        ("cores.value", "cores.vlaue", "cpu.cores.vlaue: is not a key; did you mean value?"),
        ("title", '"a - at `$.b`"', "a - at `$.b`: is not a key; "),
        ("[engines]", "[zzz]", "zzz: is not a key; choose one of accelerators, aliases, cpu, engines, "),
        ("title", "aliases = []\n#", "title: is missing; add it; the keys here are name, title, "),
        ("cores.source", "#", "cpu.cores.source: is missing; add it; the keys here are value, source"),
        ("usable.reason", "#", "memory.usable.reason: is missing; add it; the keys here are value, reason"),
        ("usable.reason", "usable.source", "memory.usable.source: is not a key; choose one of reason, value"),
        # Types
        ("cores.value = 8", 'cores.value = "8"', "cpu.cores.value: is text; write a whole number from 1 up"),
        ("cores.value = 8", "cores.value = 8.5", "cpu.cores.value: is a decimal number; write a whole"),
        ("cores.value = 8", "cores.value = true", "cpu.cores.value: is true or false; write a whole"),
        ('"my-board"', "5", "name: is a whole number; write text"),
        ('["ort"]', '"ort"', "engines.value: is text; write a list"),
        ("opset.value = 23", "opset.value = 2026-01-01", "limits.opset.value: is a date; write a whole"),
        (
            "opset.value = 23\nopset.source",
            "opset = 23 #",
            "limits.opset: is a whole number; write a table with the keys value",
        ),
        ("[memory]", "toolchain.qnn = 3\n[memory]", "toolchain.qnn: is a whole number; write a table with"),
        ("[cpu]", "[[cpu]]", "cpu: is a list; write a table with the keys architecture, cores"),
        # Values
        ('"int4"', '"int3"', "modules.decoder.precision.value: 'int3' is not allowed; write one of fp16, "),
        ('"aarch64"', '"arm"', "cpu.architecture.value: 'arm' is not allowed; write one of aarch64, x86_64"),
        (
            '"aarch64"',
            '"a - at `$.b`"',
            "cpu.architecture.value: 'a - at `$.b`' is not allowed; write one of ",
        ),
        ('["ort"]', '["onnx"]', "engines.value[0]: 'onnx' is not allowed; write one of "),
        ("cores.value = 8", "cores.value = 0", "cpu.cores.value: does not fit: Expected `int` >= 1; write a"),
        ("16GiB", "2 gigs", "memory.total.value: '2 gigs' is not a size; write 32GiB, 1500MB or plain bytes"),
        ("16GiB", "-1", "memory.total.value: '-1' is not a size; "),
        ('"16GiB"', "-1", "memory.total.value: -1 is not a size; "),
        ('"16GiB"', "1.5", "memory.total.value: 1.5 is not a size; "),
        ('"16GiB"', "true", "memory.total.value: True is not a size; "),
        ("34.1GB/s", "34.1GB", "memory.bandwidth.value: '34.1GB' is not a bandwidth; write 204.8GB/s"),
        ("34.1GB/s", "fast/s", "memory.bandwidth.value: 'fast/s' is not a bandwidth; write 204.8GB/s"),
        ("34.1GB/s", "34.1GB/s\\n", "memory.bandwidth.value: '34.1GB/s\\n' is not a bandwidth; "),
        # Sources and reasons
        ("Board manual v2, section 1.1", "trust me", "memory.total.source: 'trust me' names no source; "),
        ("Board manual v2, section 1.1", "", "memory.total.source: '' names no source; write a URL, "),
        ("Board manual v2, section 1.1", "https://", "memory.total.source: 'https://' names no source; "),
        ("Board manual v2, section 1.1", "measured: ", "memory.total.source: 'measured: ' names no source"),
        ("ONNX Runtime is what the image carries", " ", "engines.reason: is empty; say in a clause why"),
        # Syntax
        (
            "[memory]",
            "[memory",
            "is not valid TOML: Expected ']' at the end of a table declaration (at line 4",
        ),
        ("[cpu]", "[memory]", "is not valid TOML: "),
        ("cores.value = 8", "cores.value =", "is not valid TOML: Invalid value (at line 15, column 14)"),
    ],
)
def test_a_mistake_in_a_file_names_file_key_and_what_is_allowed(
    board: Path, example: str, old: str, new: str, expected: str
) -> None:
    assert old in example
    board.write_text(example.replace(old, new))
    message = refusal(str(board))
    assert message.startswith(f"{board}: {expected}")
    assert "; " in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty; write a profile into it"),
        (b" \n\t\n", "is empty; "),
        (b"name = '\xff'", "is not UTF-8 text; give a profile in TOML"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "is not valid TOML: "),
        (b"name = 'a\x00b'", "is not valid TOML: "),
        (b"x = " + b"[" * 100_000, "is not valid TOML: "),
        (b"#" * (1 << 20) + b"#", "is not a file of at most 1 MiB; "),
    ],
)
def test_a_file_that_is_no_profile(board: Path, content: bytes, expected: str) -> None:
    board.write_bytes(content)
    assert refusal(str(board)).startswith(f"{board}: {expected}")


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "no.toml"
    assert refusal(str(missing)).startswith(f"{missing}: cannot be read: No such file or directory; ")
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert refusal(str(folder)).startswith(f"{folder}: is not a file of at most 1 MiB; ")
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    assert refusal(str(pipe)).startswith(f"{pipe}: is not a file of at most 1 MiB; ")
    assert "cannot be read: File name too long" in refusal("x" * 5000 + ".toml")
    assert "cannot be read: embedded null" in refusal("a\0b.toml")


def test_a_file_that_may_not_be_read(board: Path, example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The mode bits do not stop root, who may be running the tests.
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    board.write_text(example)
    monkeypatch.setattr(Path, "read_bytes", deny)
    assert refusal(str(board)).startswith(f"{board}: cannot be read: Permission denied; ")
