"""Which hashes are remembered: only of large files, of which any later change would be seen."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import pytest

from edgeglm import digest
from edgeglm.digest import KnownHashes

FOREVER = 10**18


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of a page between small and large files, which count as written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "ALWAYS_BYTES", 4096)
    for name in ("SETTLED_NS", "WRITTEN_BACK_NS"):
        monkeypatch.setattr(digest, name, -1)
    monkeypatch.setattr(digest, "TRUSTED", {digest._file_system(tmp_path)})


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(bytes(8192))
    return tmp_path / "large"


def hashes(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a second look at a file hashes it."""
    calls: list[int] = []
    original = digest.hash_range

    def spy(hasher: hashlib._Hash, descriptor: int, start: int, end: int) -> None:
        calls.append(end)
        original(hasher, descriptor, start, end)

    remember(path)
    with monkeypatch.context() as patch:
        patch.setattr(digest, "hash_range", spy)
        remember(path)
    return len(calls)


def remember(path: Path) -> str:
    known = KnownHashes(path.parent)
    found = known.sha256(path)
    known.save()
    return found


def test_a_large_file_is_hashed_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hashes(large, monkeypatch) == 0


def test_a_small_file_is_hashed_every_time(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(large, 4096)
    assert hashes(large, monkeypatch) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("TRUSTED", set()), ("WRITTEN_BACK_NS", FOREVER), ("SETTLED_NS", 2 * FOREVER)]
)
def test_a_change_that_might_go_unseen_is_not_waited_for(
    large: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(digest, name, value)
    if name == "WRITTEN_BACK_NS":
        monkeypatch.setattr(digest, name, FOREVER * 10)
    assert hashes(large, monkeypatch) == 1


def test_a_write_through_a_map_that_was_open_before_is_seen(large: Path) -> None:
    if digest._file_system(large) not in {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}:
        pytest.skip("a file system that is not trusted")
    with open(large, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[5000] = 1  # the page is dirty: without writing it back, the next change would not set the time
        before = remember(large)
        assert before == hashlib.sha256(large.read_bytes()).hexdigest()
        view[5001] = 2
        assert remember(large) == hashlib.sha256(large.read_bytes()).hexdigest() != before


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    assert digest._file_system(Path("/proc/self/status")) == "proc"
    assert digest._file_system(Path("relative")) == ""


def test_hashing_takes_bounded_memory_and_notices_a_short_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(3 << 20))
    with open(path, "rb") as file:
        hasher = hashlib.sha256()
        digest.hash_range(hasher, file.fileno(), 1, 3 << 20)
        assert hasher.digest() == hashlib.sha256(bytes((3 << 20) - 1)).digest()
        with pytest.raises(OSError, match="ends at byte 3145728"):
            digest.hash_range(hasher, file.fileno(), 0, (3 << 20) + 1)
