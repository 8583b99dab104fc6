"""A manifest whose parts do not agree is damaged, whoever sealed it, and the key is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from edgeglm.bundle import load_bundle, read_manifest
from edgeglm.cli.main import COMMANDS as MAIN
from edgeglm.cli.main import EXTRAS, cli, main
from edgeglm.contract import scales_offset
from edgeglm.errors import DamagedFileError
from edgeglm.manifest import MANIFEST
from tests.bundles import reseal, write_bundle

# Every command that takes a bundle, with what it needs beside it.
COMMANDS: dict[str, list[str]] = {
    "verify": [],
    "inspect": [],
    "run": ["--prompt", "x"],
    "bench": [],
    "build": [],
    "validate": [],
    "burn-test": ["--via", "ssh", "nowhere.invalid"],
}
has_torch = find_spec("torch") is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


Change = Callable[[dict[str, Any]], object]
ROWS = r"model\.vocabulary: .* rows of .* take \d+ bytes, and embedding/rows.bin has 1024"
CHANGES: dict[str, tuple[Change, str]] = {
    "a huge vocabulary": (lambda m: m["model"].update(vocabulary=10**12), r"model\.vocabulary: Expected `int` <="),
    "a larger vocabulary": (lambda m: m["model"].update(vocabulary=17), ROWS),
    "a smaller vocabulary": (lambda m: m["model"].update(vocabulary=2), ROWS),
    "another width": (lambda m: m["model"].update(hidden_size=7), ROWS),
    "rows in fp32": (lambda m: m["modules"][0].update(precision="fp32"), ROWS),
    "rows in int4": (lambda m: m["modules"][0].update(precision="int4"), r"modules\[0\]\.precision: 'int4' is not one"),
    "no embedding": (lambda m: m["modules"].pop(0), "modules: has no embedding"),
    "no decoder": (lambda m: m["modules"].pop(1), "modules: has no decoder"),
    "a graph too": (lambda m: m["modules"][1].update(name="graph"), r"modules"),
    "another folder": (lambda m: m["modules"][1].update(file="embedding/rows.bin"), r"modules\[1\]\.file: .*folder of"),
    "rows that decode": (lambda m: m["modules"][1].update(format="rows"), r"modules\[1\]\.format: 'rows' is not"),
    "an engine of another format": (
        lambda m: m["modules"][1].update(engine="litert"),
        r"modules\[1\]\.engine: 'litert'",
    ),
    "an NPU without a chip": (lambda m: m["modules"][1].update(engine="qnn"), r"modules\[1\]\.engine: is 'qnn'"),
    "other logits": (lambda m: m["modules"][1]["outputs"][0].update(shape=[1, 1, 17]), r"modules\[1\]: logits has"),
    "other states": (
        lambda m: m["modules"][1]["inputs"].append(
            {"name": "past_key.0", "dtype": "float32", "shape": [1, 3, "n", 16]}
        ),
        r"modules\[1\]: past_key\.0 has the shape \[1, 3, 'n', 16\]",
    ),
    "one axis of three": (
        lambda m: m["modules"][1]["inputs"].append({"name": "position_ids", "dtype": "int64", "shape": [1, 1, "n"]}),
        r"modules\[1\]: position_ids has the shape",
    ),
    "sections of another head": (
        lambda m: m["model"]["rope"].update(mrope_sections=[2, 1, 2]),
        "mrope_sections: sum to",
    ),
    "heads that do not divide": (lambda m: m["model"].update(heads=5), r"model\.heads: 5 is no multiple"),
    "half a merged patch": (
        lambda m: m["model"]["vision"].update(grid=[15, 8]),
        r"model\.vision\.grid: is no multiple",
    ),
    "an image token of none": (lambda m: m["model"]["vision"].update(image_token_id=16), r"model\.vision: has a token"),
    "an end token of none": (lambda m: m["generation"].update(eos_token_ids=[16]), r"eos_token_ids: has a token that"),
    "a spread of nearly 0": (lambda m: m["model"]["vision"].update(std=[1e-300, 1, 1]), r"model\.vision\.std"),
    "a penalty of nearly 0": (lambda m: m["generation"].update(repetition_penalty=1e-300), r"repetition_penalty"),
    "nothing predicted": (lambda m: m["predicted"].update(device_peak_rss_bytes={}), "device_peak_rss_bytes: is empty"),
    "a peak without end": (lambda m: m["predicted"].update(export_peak_rss_bytes=2**63), "export_peak_rss_bytes"),
    "an escape in a title": (lambda m: m["profile"].update(title="\x1b]0;pwned\x07"), r"title: '.x1b\]0;pwned"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_agree_is_damaged_and_the_key_is_named(folder: Path, name: str) -> None:
    change, expected = CHANGES[name]
    reseal(folder, change)
    with pytest.raises(DamagedFileError, match=expected) as caught:
        load_bundle(folder)
    assert str(caught.value).startswith(f"{folder}/manifest.json: ")
    assert str(caught.value).isprintable()


def test_int8_rows_have_their_scales_behind_them(folder: Path) -> None:
    def to_int8(tree: dict[str, Any]) -> None:
        tree["modules"][0]["precision"] = "int8"
        tree["files"]["embedding/rows.bin"]["bytes"] = 512 + 64

    reseal(folder, to_int8)
    assert read_manifest(folder).modules[0].precision == "int8"
    assert (scales_offset(16, 32), scales_offset(16, 31), scales_offset(1024, 31)) == (512, 512, 32768)


def test_a_key_that_stands_twice_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reseal(folder, lambda m: None)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"layers": 2', '"layers": 2, "layers": 2'))
    for command in ("verify", "inspect"):
        assert main([command, str(folder)]) == 6
        assert "manifest.json: layers: stands twice; " in capsys.readouterr().err


def test_these_are_the_commands_that_take_a_bundle() -> None:
    group = click.Context(cli)
    taking = {"run"}  # which parses its arguments by itself
    for name in MAIN:
        if has_torch or name not in EXTRAS:
            found = cli.get_command(group, name)
            if found and any(parameter.name == "bundle" for parameter in found.params):
                taking.add(name)
    assert taking == set(COMMANDS) - (set() if has_torch else set(EXTRAS))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_so_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    if command in EXTRAS and not has_torch:
        pytest.skip("needs torch")
    reseal(folder, lambda m: m.update({"\x1b]0;pwned\x07": 1}))
    assert main([command, str(folder), *COMMANDS[command]]) == 6
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n"), "\x1b" in told.err) == ("", 1, False)
    reseal(folder, lambda m: [m.pop("\x1b]0;pwned\x07"), m["profile"].update(title="\x9b2J")])
    assert main([command, str(folder), *COMMANDS[command]]) == 6
    assert "manifest.json: title: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "inspect"])
@pytest.mark.parametrize("name", ["decoder/model.onnx", "tokenizer/tokenizer.json", "decoder/weights.bin"])
def test_no_command_takes_a_damaged_file(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    """What inspect reads is the manifest alone; a build reads what an engine is made of."""
    if command in EXTRAS and not has_torch:
        pytest.skip("needs torch")
    data = (folder / name).read_bytes()
    for damaged in (bytes([data[0] ^ 1]) + data[1:], data + b"1", None):
        (folder / name).unlink()
        if damaged is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).write_bytes(damaged)
        status = main([command, str(folder), *COMMANDS[command]])
        told = capsys.readouterr()
        of_same_size = damaged is not None and len(damaged) == len(data)
        if of_same_size and command == "build":
            continue
        assert status == 6, told
        assert (command == "verify" or told.out == "", told.err.count("\n")) == (True, 1)
        assert name in told.err


def test_a_bit_in_a_key_is_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((folder / MANIFEST).read_bytes())
    data[data.index(b'"accelerators"') + 11] ^= 0x80
    (folder / MANIFEST).write_bytes(data)
    for command in ("verify", "inspect"):
        assert main([command, str(folder)]) == 6
        assert "manifest.json: is not valid JSON: " in capsys.readouterr().err


def test_a_file_that_the_manifest_does_not_list_is_not_read_by_its_name(folder: Path) -> None:
    (folder / "tokenizer/chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(DamagedFileError, match=r"tokenizer/chat_template\.jinja: is not part of the bundle"):
        load_bundle(folder)
    (folder / "tokenizer/chat_template.jinja").rename(folder / "tokenizer/.chat_template.swp")
    (folder / "notes.json").write_text(json.dumps("mine"))
    load_bundle(folder)
