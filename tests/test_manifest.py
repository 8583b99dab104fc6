"""The manifest's bytes: always the same for the same content, sealed, and none that the reader would refuse."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from edgeglm.bundle import (
    read_manifest,
)
from edgeglm.manifest import BLANK_SEAL, MANIFEST, Predicted, parse_manifest
from tests.bundles import DECODER, EMBEDDING, sample_manifest, write_bundle


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
