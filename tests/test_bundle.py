"""Reading bundles: the manifest's bytes, and every way in which a bundle may be damaged or hostile."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from edgeglm import digest, store
from edgeglm.bundle import (
    MAX_MANIFEST_BYTES,
    extra_files,
    find_damage,
    is_bundle,
    load_bundle,
    read_manifest,
    verify_bundle,
)
from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.manifest import BLANK_SEAL, MANIFEST, Predicted, parse_manifest
from tests.bundles import CONTENT, DECODER, EMBEDDING, reseal, sample_manifest, write_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which hashes of small files that have just been written may enter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("SETTLED_NS", "WRITTEN_BACK_NS", "ALWAYS_BYTES"):
        monkeypatch.setattr(digest, name, -1)
    monkeypatch.setattr(digest, "TRUSTED", {digest._file_system(tmp_path)})
    return tmp_path / "cache" / "edgeglm" / "verified"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


def test_a_manifest_survives_its_bytes_and_they_are_always_the_same(folder: Path) -> None:
    manifest = read_manifest(folder)
    data = (folder / MANIFEST).read_bytes()
    assert manifest.to_bytes() == data
    assert replace(manifest, files=dict(reversed(manifest.files.items()))).to_bytes() == data
    assert replace(manifest, seal=BLANK_SEAL) == sample_manifest(manifest.files)
    assert manifest.profile.memory.usable.value == 18 << 30
    assert manifest.predicted.device_peak_rss_bytes[4096] == 2 << 30
    assert (manifest.bundle_bytes, manifest.module_bytes(DECODER)) == (5127, 4101)


def test_what_the_reader_would_refuse_is_not_written(folder: Path) -> None:
    manifest = read_manifest(folder)
    with pytest.raises(ValueError, match="NaN"):
        replace(manifest, modules=(EMBEDDING, replace(DECODER, max_relative_error=float("nan")))).to_bytes()
    with pytest.raises(ValueError, match=r"'embedding/rows\.bin' is not in files"):
        replace(manifest, files={}).to_bytes()
    with pytest.raises(ValueError, match="export_peak_rss_bytes"):
        replace(manifest, predicted=Predicted(-1, {})).to_bytes()


def test_no_byte_of_a_manifest_changes_unseen(folder: Path) -> None:
    data = (folder / MANIFEST).read_bytes()
    for index in range(len(data)):
        with pytest.raises(msgspec.DecodeError):
            parse_manifest(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])


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


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that are hashed."""
    sizes: list[int] = []
    original = digest.hash_range

    def spy(hasher: hashlib._Hash, descriptor: int, start: int, end: int) -> None:
        sizes.append(end - start)
        original(hasher, descriptor, start, end)

    monkeypatch.setattr(digest, "hash_range", spy)
    return sizes


def test_an_unchanged_file_is_hashed_once(folder: Path, hashed: list[int]) -> None:
    for _ in range(3):
        verify_bundle(load_bundle(folder))
    assert len(hashed) == len(CONTENT)
    list(find_damage(folder, read_manifest(folder), trust_memory=False))
    assert len(hashed) == 2 * len(CONTENT)


def test_a_change_behind_an_old_modification_time_is_found(folder: Path) -> None:
    path = folder / "decoder/weights.bin"
    bundle = load_bundle(folder)
    verify_bundle(bundle)
    status = path.stat()
    time.sleep(0.05)  # longer than a tick of the file system's clock
    with open(path, "r+b") as file:
        file.write(b"\xff")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DamagedFileError):
        verify_bundle(bundle)


def test_a_file_that_has_just_changed_is_not_remembered(
    folder: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "SETTLED_NS", 3600 * 10**9)
    for _ in range(2):
        verify_bundle(load_bundle(folder))
    assert len(hashed) == 2 * len(CONTENT)


def forge(cache_file: Path) -> None:
    """Remember the damaged file under the right hash."""
    known = json.loads((store.find("verified", cache_file.name) or {})["hashes.json"])
    right = hashlib.sha256(CONTENT["decoder/weights.bin"]).hexdigest()
    forged = {key: right if "weights" in key else value for key, value in known.items()}
    store.keep("verified", cache_file.name, {"hashes.json": json.dumps(forged).encode()})


def damaged_and_remembered(folder: Path, cache: Path) -> Path:
    (folder / "decoder/weights.bin").write_bytes(bytes(4096))
    assert len(list(find_damage(folder, read_manifest(folder)))) == 1
    (cache_file,) = cache.iterdir()
    assert cache_file.stat().st_mode & 0o777 == 0o600
    assert cache.stat().st_mode & 0o777 == 0o700
    return cache_file


def test_memory_with_a_flipped_bit_blames_no_bundle(folder: Path, cache: Path) -> None:
    bundle = load_bundle(folder)
    verify_bundle(bundle)
    (cache_file,) = cache.iterdir()
    whole = cache_file.read_bytes()
    for place in range(0, len(whole), 41):
        cache_file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        verify_bundle(bundle)


def test_memory_is_believed_from_this_user_only(folder: Path, cache: Path) -> None:
    cache_file = damaged_and_remembered(folder, cache)
    forge(cache_file)
    verify_bundle(load_bundle(folder))  # so the forged memory would work
    cache_file.chmod(0o620)
    with pytest.raises(DamagedFileError):
        verify_bundle(load_bundle(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_memory_of_another_user_is_not_believed(folder: Path, cache: Path) -> None:
    cache_file = damaged_and_remembered(folder, cache)
    forge(cache_file)
    os.chown(cache_file, 65534, 65534)
    with pytest.raises(DamagedFileError):
        verify_bundle(load_bundle(folder))


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"a": 1}', b"[" * 100_000])
def test_damaged_memory_is_forgotten(folder: Path, cache: Path, hashed: list[int], data: bytes) -> None:
    verify_bundle(load_bundle(folder))
    next(cache.iterdir()).write_bytes(data)
    verify_bundle(load_bundle(folder))
    verify_bundle(load_bundle(folder))
    assert len(hashed) == 2 * len(CONTENT)


@pytest.mark.parametrize("home", ["/dev/null/x", "relative"])
def test_without_a_place_to_remember_a_bundle_is_verified_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.chdir(folder.parent)
    verify_bundle(load_bundle(folder))
    (folder / "decoder/weights.bin").write_bytes(bytes(4096))
    with pytest.raises(DamagedFileError):
        verify_bundle(load_bundle(folder))


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


def test_hashing_takes_bounded_memory_and_notices_a_short_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(3 << 20))
    with open(path, "rb") as file:
        hasher = hashlib.sha256()
        digest.hash_range(hasher, file.fileno(), 1, 3 << 20)
        assert hasher.digest() == hashlib.sha256(bytes((3 << 20) - 1)).digest()
        with pytest.raises(OSError, match="ends at byte 3145728"):
            digest.hash_range(hasher, file.fileno(), 0, (3 << 20) + 1)
