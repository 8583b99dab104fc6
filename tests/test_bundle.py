"""Reading bundles: every way in which a bundle may be damaged or hostile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeglm.bundle import (
    MAX_MANIFEST_BYTES,
    is_bundle,
    load_bundle,
    read_manifest,
    verify_bundle,
)
from edgeglm.damage import extra_files, find_damage
from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.manifest import MANIFEST
from tests.bundles import CONTENT, DECODER, believe_new_files, reseal, write_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which hashes of small files that have just been written may enter."""
    return believe_new_files(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


def test_a_whole_bundle_loads_and_verifies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for path in (folder, Path("b"), Path("b/")):
        bundle = load_bundle(path)
        verify_bundle(bundle)
        assert bundle.folder == folder.resolve()
        assert bundle.path("decoder/weights.bin").read_bytes() == CONTENT["decoder/weights.bin"]
    assert bundle.module("decoder") == DECODER
    assert bundle.module("vision") is None
    with pytest.raises(KeyError):
        bundle.path("../b/manifest.json")


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda m: m.update(colour=1), "manifest.json: top level: Object contains unknown field `colour`"),
    "unknown inner key": (lambda m: m["model"]["rope"].update(x=1), "manifest.json: model.rope: "),
    "missing key": (lambda m: m["model"].pop("heads"), "manifest.json: model: Object missing required field `heads`"),
    "wrong type": (lambda m: m["model"].update(layers="2"), "manifest.json: model.layers: Expected `int`, got `str`"),
    "zero": (lambda m: m["model"].update(layers=0), "manifest.json: model.layers: Expected `int` >= 1"),
    "wrong hash": (lambda m: m["files"]["decoder/model.onnx"].update(sha256="A" * 64), "manifest.json: files[...]"),
    "escape code": (lambda m: m["model"].update(name="\x1b[2J"), "manifest.json: model.name: "),
    "unknown module": (lambda m: m["modules"][0].update(name="nose"), "modules[0].name: Invalid enum value 'nose'"),
    "module twice": (lambda m: m["modules"].append(m["modules"][0]), "manifest.json: modules: has a name twice"),
    "unlisted file": (lambda m: m["modules"][0].update(file="x"), "modules[0].file: 'x' is not in files"),
    "mixed of nothing": (lambda m: m["modules"][1].update(precision="mixed"), "modules[1].parts: does not fit"),
    "parts of one": (lambda m: m["modules"][1].update(parts={"back": "int8"}), "modules[1].parts: does not fit"),
    "wrong memory": (lambda m: m["profile"]["memory"]["usable"].update(value="1GiB"), "profile.memory.usable.value: "),
    "old schema": (lambda m: m.update(bundle_schema=0), "manifest.json: bundle_schema: "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_does_not_fit_is_damaged_and_the_key_is_named(folder: Path, name: str) -> None:
    change, expected = CHANGES[name]
    reseal(folder, change)
    with pytest.raises(DamagedFileError) as caught:
        load_bundle(folder)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{folder}/manifest.json: ")


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/", "", ".", "a\0b", "a\nb", "\x1b[2J", MANIFEST],
)
def test_a_path_that_may_leave_the_bundle_is_refused(folder: Path, path: str) -> None:
    reseal(folder, lambda m: m["files"].update({path: {"bytes": 1, "sha256": "0" * 63 + "1"}}))
    with pytest.raises(
        DamagedFileError, match=r"files: .* is not a path inside the bundle|has the key .*, with control characters"
    ):
        load_bundle(folder)


def test_a_bundle_of_the_first_schema_loads(folder: Path) -> None:
    reseal(folder, lambda m: m.update(bundle_schema=1))
    assert load_bundle(folder).manifest.bundle_schema == 1


def test_a_newer_schema_asks_for_an_update_whatever_else_it_holds(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"bundle_schema": 3, "new": []}')
    with pytest.raises(UnsupportedError, match=r"has schema 3, .* update edgeglm"):
        load_bundle(folder)
    assert is_bundle(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"bundle_schema": "1"}',
        b'{"bundle_schema": 1, "x": ' + b"[" * 100_000,
        b'{"bundle_schema": 1, "\xf2": 1}',
    ],
    ids=["empty", "cut", "list", "null", "binary", "text schema", "nested", "no UTF-8"],
)
def test_what_is_no_manifest_is_damaged(folder: Path, data: bytes) -> None:
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"manifest\.json"):
        load_bundle(folder)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with open(folder / MANIFEST, "r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(DamagedFileError, match="is longer than"):
        load_bundle(folder)


def make_unfit(folder: Path, kind: str) -> Path:
    path = folder.parent / "other"
    if kind == "file":
        path.write_text("x")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "nul":
        return Path("a\0b")
    return path


@pytest.mark.parametrize("kind", ["missing", "file", "empty folder", "loop", "nul"])
def test_what_is_no_bundle_is_a_usage_error(folder: Path, kind: str) -> None:
    path = make_unfit(folder, kind)
    assert not is_bundle(path)
    with pytest.raises(UsageError):
        load_bundle(path)


def cut(path: Path) -> None:
    os.truncate(path, 4095)


def link_out(path: Path) -> None:
    path.rename(path.parents[2] / "weights.bin")
    path.symlink_to("../../weights.bin")


def link_folder_out(path: Path) -> None:
    path.parent.rename(path.parents[2] / "decoder")
    path.parent.symlink_to("../decoder")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


STRUCTURE: list[tuple[Callable[[Path], None], str]] = [
    (Path.unlink, "is missing"),
    (cut, "has 4095 bytes instead of 4096"),
    (link_out, "is a link that leaves the bundle"),
    (link_folder_out, "is a link that leaves the bundle"),
    (loop, "cannot be read: Too many levels of symbolic links"),
    (fifo, "is not a regular file"),
    (directory, "is not a regular file"),
]


@pytest.mark.parametrize(("harm", "why"), STRUCTURE, ids=lambda value: getattr(value, "__name__", ""))
def test_harm_that_shows_without_reading_is_found_when_loading(
    folder: Path, harm: Callable[[Path], None], why: str
) -> None:
    harm(folder / "decoder/weights.bin")
    with pytest.raises(DamagedFileError) as caught:
        load_bundle(folder)
    assert caught.value.why == why
    damage = list(find_damage(folder, read_manifest(folder)))
    assert ("decoder/weights.bin", why) in [(found.file, found.why) for found in damage]


def test_a_link_that_stays_inside_is_followed(folder: Path) -> None:
    (folder / "decoder/weights.bin").rename(folder / "w")
    (folder / "decoder/weights.bin").symlink_to("../w")
    verify_bundle(load_bundle(folder))


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_manifest_that_is_no_regular_file_is_refused_without_waiting(folder: Path, kind: str) -> None:
    path = folder / MANIFEST
    path.rename(folder / "m")
    if kind == "link":
        path.symlink_to("m")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(EdgeglmError):
        load_bundle(folder)


@pytest.mark.parametrize("relative", CONTENT)
def test_a_changed_byte_is_found_when_verifying(folder: Path, relative: str) -> None:
    bundle = load_bundle(folder)
    verify_bundle(bundle)
    data = bytearray(CONTENT[relative])
    data[-1] ^= 1
    (folder / relative).write_bytes(data)
    with pytest.raises(DamagedFileError, match="SHA-256") as caught:
        verify_bundle(bundle)
    assert caught.value.what == str(folder / relative)


def test_every_damage_is_listed_and_what_is_not_of_the_bundle_too(folder: Path) -> None:
    (folder / "decoder/model.onnx").write_bytes(b"grapH")
    (folder / "embedding/rows.bin").unlink()
    (folder / "notes").write_text("mine")
    (folder / "link").symlink_to("/")
    manifest = read_manifest(folder)
    assert [damage.file for damage in find_damage(folder, manifest)] == ["decoder/model.onnx", "embedding/rows.bin"]
    assert extra_files(folder, manifest) == ["link", "notes"]


READ_WITHOUT_RIGHTS = """
import os, sys
from pathlib import Path
from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.errors import EdgeglmError
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    verify_bundle(load_bundle(Path(sys.argv[1])))
except EdgeglmError as error:
    print(error.why)
"""


@pytest.mark.parametrize("relative", [MANIFEST, "decoder/weights.bin"])
def test_an_unreadable_file_is_one_line(relative: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        write_bundle(folder)
        (folder / relative).chmod(0)
        command = [sys.executable, "-c", READ_WITHOUT_RIGHTS, place]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "cannot be read: Permission denied\n", done.stderr
