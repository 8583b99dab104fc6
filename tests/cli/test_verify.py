"""``edgeglm verify``: whole, damaged and extended bundles."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from edgeglm import digest, store
from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.cli.main import main
from tests.bundles import CONTENT, write_bundle


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_whole_bundle_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, folder) == (0, f"{folder}: 4 files, 5.01KiB, all as exported\n", "")


@pytest.mark.parametrize("relative", CONTENT)
def test_a_changed_byte_is_one_line_and_the_code_for_damage(
    folder: Path, capsys: pytest.CaptureFixture[str], relative: str
) -> None:
    data = bytearray(CONTENT[relative])
    data[0] ^= 128
    (folder / relative).write_bytes(data)
    status, out, err = run(capsys, folder)
    assert (status, out) == (6, "")
    assert err.startswith(f"edgeglm: {folder}/{relative}: is damaged or was changed")
    assert err.count("\n") == 1


def test_json_names_every_damaged_file_and_every_extra_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "decoder/weights.bin").write_bytes(b"short")
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "notes").write_text("mine")
    status, out, err = run(capsys, folder, "--json")
    assert status == 6
    assert err.startswith(f"edgeglm: {folder}/decoder/weights.bin: has 5 bytes instead of 4096; ")
    assert json.loads(out) == {
        "bundle": str(folder),
        "files": 4,
        "bundle_bytes": 5127,
        "damaged": [
            {"file": "decoder/weights.bin", "why": "has 5 bytes instead of 4096"},
            {"file": "tokenizer/tokenizer.json", "why": "is missing"},
        ],
        "extra": ["notes"],
        "passed": False,
    }


def test_an_extra_file_is_said_and_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "decoder/\x1b[2Jnotes").write_text("mine")
    status, out, err = run(capsys, folder)
    assert (status, err) == (0, "'decoder/\\x1b[2Jnotes' is not part of the bundle\n")
    assert "all as exported" in out


def test_what_was_remembered_is_read_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SETTLED_NS", "WRITTEN_BACK_NS", "ALWAYS_BYTES"):
        monkeypatch.setattr(digest, name, -1)
    monkeypatch.setattr(digest, "TRUSTED", {digest._file_system(folder)})
    bundle = load_bundle(folder)
    (folder / "decoder/weights.bin").write_bytes(bytes(4096))
    assert run(capsys, folder)[0] == 6
    (cache,) = (folder.parent / "cache/edgeglm/verified").iterdir()
    wrong, right = hashlib.sha256(bytes(4096)), hashlib.sha256(CONTENT["decoder/weights.bin"])
    files = store.find("verified", cache.name) or {}
    known = {name: data.replace(wrong.hexdigest().encode(), right.hexdigest().encode()) for name, data in files.items()}
    store.keep("verified", cache.name, known)
    verify_bundle(bundle)  # believes it
    assert run(capsys, folder)[0] == 6
