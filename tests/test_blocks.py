"""Blocks of the store: right or not believed, at most so many bytes, the least recently used ones out first."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgeglm.blocks import KIND, WRITERS, Block, Blocks, block_name

DATA = memoryview(bytes(range(256)) * 16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgeglm" / KIND


def read(block: Block | None) -> bytes | None:
    return block.file[block.start :] if block else None


def test_a_block_is_found_by_its_head_alone(folder: Path) -> None:
    blocks = Blocks(1 << 20)
    assert blocks.find(b"head") is None
    assert blocks.keep(b"head", DATA)
    assert read(blocks.find(b"head")) == bytes(DATA)
    assert read(Blocks(1 << 20).find(b"head")) == bytes(DATA)
    assert blocks.find(b"Head") is None
    assert [path.name for path in folder.iterdir()] == [block_name(b"head")]


def test_a_block_that_goes_meanwhile_is_still_read(folder: Path) -> None:
    blocks = Blocks(1 << 20)
    blocks.keep(b"head", DATA)
    block = blocks.find(b"head")
    (folder / block_name(b"head")).unlink()
    assert read(block) == bytes(DATA)


@pytest.mark.parametrize("place", [0, 40, 100, 2000, -1])
def test_a_changed_bit_anywhere_is_seen_and_the_file_removed(folder: Path, place: int) -> None:
    blocks = Blocks(1 << 20)
    blocks.keep(b"h" * 40, DATA)
    file = folder / block_name(b"h" * 40)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert blocks.find(b"h" * 40) is None
    assert not file.exists()


def test_a_block_under_another_head_s_name_is_not_believed(folder: Path) -> None:
    blocks = Blocks(1 << 20)
    blocks.keep(b"one", DATA)
    (folder / block_name(b"one")).rename(folder / block_name(b"two"))
    assert blocks.find(b"two") is None


def test_the_least_recently_used_go_first_and_whatever_needs_a_block_before_it(folder: Path) -> None:
    size = 3 * (len(DATA) + 64)
    blocks = Blocks(size)
    for head in (b"1", b"2", b"3"):
        assert blocks.keep(head, DATA)
    blocks.use([b"1", b"2"])  # 2 is behind 1
    stamps = {head: (folder / block_name(head)).stat().st_mtime_ns for head in (b"1", b"2", b"3")}
    assert stamps[b"1"] >= stamps[b"2"] > stamps[b"3"]
    assert blocks.keep(b"4", DATA)
    assert [head for head in (b"1", b"2", b"3", b"4") if blocks.has(head)] == [b"1", b"2", b"4"]
    os.utime(folder / block_name(b"2"), ns=(0, 0))
    assert blocks.keep(b"5", DATA)
    assert not blocks.has(b"2")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= size


def test_what_is_needed_does_not_go_and_what_does_not_fit_is_not_kept(folder: Path) -> None:
    blocks = Blocks(len(DATA) + 64)
    assert blocks.keep(b"1", DATA)
    assert not blocks.keep(b"2", DATA, [block_name(b"1")])
    assert blocks.has(b"1")
    assert blocks.keep(b"2", DATA)
    assert not blocks.has(b"1")
    assert not Blocks(len(DATA)).keep(b"3", DATA)
    assert not Blocks(0).keep(b"3", DATA)


def test_writers_at_once_keep_to_the_cap(folder: Path) -> None:
    size = 5 * (len(DATA) + 64)

    def write(start: int) -> None:
        for number in range(start, start + 20):
            Blocks(size).keep(str(number).encode(), DATA)

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 10, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= size


def test_many_blocks_of_several_writers_keep_to_the_cap_and_most_of_it_is_used(folder: Path) -> None:
    size = len(DATA) + 64
    cap = 64 * 3 * size
    writers = [Blocks(cap) for _ in range(WRITERS)]
    for number in range(500):
        assert writers[number % WRITERS].keep(str(number).encode(), DATA)
        os.utime(folder / block_name(str(number).encode()), ns=(number, number))
        assert sum(path.stat().st_size for path in folder.iterdir()) <= cap
    kept = [number for number in range(500) if writers[0].has(str(number).encode())]
    assert kept == [*range(kept[0], 500)]
    assert len(kept) * size > 0.85 * cap
