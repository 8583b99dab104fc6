"""The memory of verified files: it spares hashing, and no damaged or foreign one is believed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from edgeglm import digest, store
from edgeglm.bundle import (
    load_bundle,
    read_manifest,
    verify_bundle,
)
from edgeglm.damage import find_damage
from edgeglm.errors import DamagedFileError
from tests.bundles import CONTENT, believe_new_files, write_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which hashes of small files that have just been written may enter."""
    return believe_new_files(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


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
