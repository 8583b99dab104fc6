"""Files of a bundle in the making: their hashes in any order of writing, and each byte written once."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from pathlib import Path

import pytest

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.digest import hash_range
from edgeglm.export.write import output
from edgeglm.export.write.record import Extents, Written
from edgeglm.export.write.writer import BundleWriter
from tests.bundles import ROWS_BYTES, sample_manifest
from tests.export.pack_crash import contents, export


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of output files are read back to be hashed."""
    sizes: list[int] = []

    def spy(hasher: hashlib._Hash, descriptor: int, start: int, end: int) -> None:
        sizes.append(end - start)
        hash_range(hasher, descriptor, start, end)

    monkeypatch.setattr(output, "hash_range", spy)
    return sizes


def test_the_hash_follows_bytes_in_order(tmp_path: Path, hashed: list[int], expected: dict[str, bytes]) -> None:
    export(tmp_path / "b")
    assert hashed == [120]  # behind the last piece
    assert contents(tmp_path / "b") == expected


@pytest.mark.parametrize("part", [100, 100_000])  # less and more than a padding
@pytest.mark.parametrize("order", [[2, 1, 0], [0, 2, 1], [0, 1, 2], [2, 0, 1], [1, 2, 0]], ids=str)
def test_the_hash_is_right_in_any_order(tmp_path: Path, order: list[int], part: int) -> None:
    with BundleWriter(tmp_path / "b", "key") as bundle:
        file = bundle.file("decoder/model.onnx", 3 * part)
        for turn, index in enumerate(order):
            file.pwrite(index * part, bytes([turn]) * part)
        bundle.small("embedding/rows.bin", bytes(ROWS_BYTES))
        bundle.finish(sample_manifest())
    verify_bundle(load_bundle(tmp_path / "b"))


def test_a_byte_is_written_once(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b", "key") as bundle:
        file = bundle.file("f", 10)
        file.pwrite(4, b"ab")
        for offset in (3, 4, 5):
            with pytest.raises(ValueError, match="written twice"):
                file.pwrite(offset, b"ab")


def test_extents_are_joined_where_they_touch() -> None:
    extents, moments = Extents(), random.Random(0)
    order = list(range(50))
    moments.shuffle(order)
    for place in order[:25]:
        extents.add(place, place + 1)
    missing = {place for begin, end in extents.gaps(0, 50) for place in range(begin, end)}
    assert missing == set(order[25:])
    assert all(left[1] < right[0] for left, right in pairwise(extents.gaps(0, 50)))
    for place in order[:25]:
        with pytest.raises(ValueError, match="twice"):
            extents.add(place, place + 1)
    for begin, end in [*extents.gaps(0, 50)]:
        extents.add(begin, end)
    assert [*extents.gaps(0, 60)] == [(50, 60)]


def test_what_was_written_is_spelled_and_read_again() -> None:
    written = Written()
    pieces = [(0, 4), (4, 4), (100, 2), (110, 2), (120, 2), (7, 1), (5000, 9)]
    for begin, length in pieces:
        written.add(begin, memoryview(bytes(length)))
    assert [*written.pieces()] == [(0, 8), (100, 102), (110, 112), (120, 122), (7, 8), (5000, 5009)]
    crc, _, runs = str(written).partition(" ")
    assert runs == "0+8,100+2x3/10,7+1,5000+9"
    assert Written.parse(crc, runs) == written
    with pytest.raises(ValueError, match="is not a run"):
        Written.parse(crc, "0+8,")


def test_what_is_never_written_is_zeros(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b", "key") as bundle:
        bundle.file("decoder/model.onnx", 10).pwrite(4, memoryview(b"ab"))
        bundle.file("embedding/rows.bin", ROWS_BYTES).pwrite(0, b"")
        path = bundle.finish(sample_manifest())
    assert path == (tmp_path / "b").resolve()
    assert (path / "decoder/model.onnx").read_bytes() == b"\0\0\0\0ab\0\0\0\0"


@pytest.mark.parametrize(("offset", "data"), [(-1, b"a"), (9, b"ab"), (11, b"")])
def test_outside_of_the_file_is_a_bug_of_the_caller(tmp_path: Path, offset: int, data: bytes) -> None:
    with BundleWriter(tmp_path / "b", "key") as bundle, pytest.raises(ValueError, match="outside"):
        bundle.file("f", 10).pwrite(offset, data)
