"""The folder that a bundle is put in: what is refused, what is replaced, and disks that are full."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgeglm.errors import BudgetError, EdgeglmError, UsageError
from edgeglm.export.write.target import check_target
from edgeglm.export.write.writer import BundleWriter
from edgeglm.manifest import MANIFEST
from tests.bundles import ROWS_BYTES, sample_manifest, write_bundle
from tests.export.pack_crash import contents, export


def occupy(path: Path, what: str) -> None:
    if what == "file":
        path.write_text("mine")
    elif what == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    elif what == "web app":
        path.mkdir()
        (path / MANIFEST).write_text('{"name": "mine", "icons": []}')


@pytest.mark.parametrize("what", ["file", "folder", "web app"])
@pytest.mark.parametrize("place", ["b", "b.partial"])
def test_what_is_no_bundle_is_neither_replaced_nor_removed(tmp_path: Path, what: str, place: str) -> None:
    occupy(tmp_path / place, what)
    before = contents(tmp_path), os.listdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        export(tmp_path / "b")
    assert str(tmp_path / place) in str(caught.value)
    assert (contents(tmp_path), os.listdir(tmp_path)) == before


@pytest.mark.parametrize("target", ["/", "/proc", "/dev/null", "/proc/x/y", "a\0b", "/dev/null/b", "n" * 250])
def test_an_impossible_target_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        export(Path(target))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a file/b", "n" * 250])
def test_a_target_that_cannot_be_made_is_known_before_any_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(UsageError, match=r"cannot be written: (Not a directory|File name too long); "):
        check_target(tmp_path / name)
    assert os.listdir(tmp_path) == ["a file"]


def test_a_read_only_disk_is_named_before_any_work(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsageError, match="cannot be written: Read-only file system; give a folder on a writable disk"):
        check_target(small_disk / "deep" / "b")


def test_a_folder_without_rights_is_one_line(tmp_path: Path) -> None:
    parent = Path("/proc/self/fdinfo") if os.geteuid() == 0 else tmp_path
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="cannot be written"):
        export(parent / "b")


@pytest.mark.parametrize("before", ["bundle", "empty folder"])
def test_a_bundle_and_an_empty_folder_are_replaced(tmp_path: Path, expected: dict[str, bytes], before: str) -> None:
    if before == "bundle":
        write_bundle(tmp_path / "b")
    else:
        (tmp_path / "b").mkdir()
    export(tmp_path / "b")
    assert contents(tmp_path / "b") == expected
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("target", ["b", "b/", "../work/./b", "link", "deep/er/b"])
def test_a_target_may_be_relative_deep_or_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes], target: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work/link").symlink_to(tmp_path / "elsewhere")
    export(Path(target))
    assert contents(Path(target)) == expected
    assert Path("link").is_symlink()
    assert not list(tmp_path.rglob("*.partial"))


def test_an_error_before_the_first_job_leaves_no_trace(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), BundleWriter(tmp_path / "deep/er/b", "key") as bundle:
        bundle.file("f", 10)
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_known_before_work_starts(small_disk: Path) -> None:
    with BundleWriter(small_disk / "b", "key") as bundle:
        bundle.file("decoder/weights.bin", 1 << 20)
        with pytest.raises(BudgetError, match=r"/b/embedding/rows\.bin: needs 3MiB where 10\d\dKiB is free"):
            bundle.file("embedding/rows.bin", 3 << 20)
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_keeps_what_is_done(small_disk: Path) -> None:
    with BundleWriter(small_disk / "b", "key") as bundle:
        bundle.file("decoder/model.onnx", 1 << 20).pwrite(0, b"done")
        bundle.complete("job")
        with pytest.raises(BudgetError, match=r"/b/embedding/rows\.bin: needs 2MiB where"):
            bundle.small("embedding/rows.bin", bytes(2 << 20))
    with BundleWriter(small_disk / "b", "key") as bundle:
        assert bundle.done("job")
        bundle.file("decoder/model.onnx", 1 << 20)
        bundle.small("embedding/rows.bin", bytes(ROWS_BYTES))
        bundle.finish(sample_manifest())
    assert (small_disk / "b/decoder/model.onnx").read_bytes()[:5] == b"done\0"


def test_a_whole_disk_is_no_target(small_disk: Path) -> None:
    with pytest.raises(UsageError, match="is a whole disk"):
        BundleWriter(small_disk, "key")


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with (
            pytest.raises(BudgetError, match="larger files: ulimit -f"),
            BundleWriter(tmp_path / "b", "key") as bundle,
        ):
            bundle.file("f", 2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes]
) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    export(tmp_path / "b")
    assert contents(tmp_path / "b") == expected


def test_every_error_of_the_writer_is_a_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(EdgeglmError, match=r"b/decoder/weights\.bin: cannot be written: Input/output error"):
        export(tmp_path / "b")
