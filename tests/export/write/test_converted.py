"""Files that a converter wrote: taken again only whole, and let go where the disk is short."""

from __future__ import annotations

from pathlib import Path

from edgeglm.export.write.converted import Converted


def test_what_is_kept_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    kept, made = Converted(tmp_path / "kept"), tmp_path / "made"
    made.write_bytes(b"converted")
    kept.keep("key", {"model": made}, "report")
    made.unlink()  # with the bundle that it was made for
    assert kept.take("other", {"model": tmp_path / "no"}) is None
    assert kept.take("key", {"model": tmp_path / "bundle" / "file"}) == "report"
    assert (tmp_path / "bundle" / "file").read_bytes() == b"converted"
    (tmp_path / "kept" / "key" / "model").write_bytes(b"damaged")
    assert kept.take("key", {"model": tmp_path / "again"}) is None
    (tmp_path / "kept" / "key" / "model").unlink()
    assert kept.take("key", {"model": tmp_path / "gone"}) is None


def test_without_a_folder_or_room_nothing_is_kept(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"converted")
    nowhere = Converted()
    nowhere.keep("key", {"model": made}, "report")
    assert nowhere.take("key", {"model": tmp_path / "file"}) is None
    kept = Converted(tmp_path / "kept")
    kept.keep("key", {"model": made}, "report")
    kept.make_room(1)
    assert kept.take("key", {"model": tmp_path / "file"}) == "report"
    kept.make_room(1 << 60)
    assert not (tmp_path / "kept").exists()
    assert kept.take("key", {"model": tmp_path / "other"}) is None
