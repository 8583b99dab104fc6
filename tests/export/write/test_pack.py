"""Writing bundles: killed, interrupted and starved at every step, and what may stand at the target."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.digest import hash_range
from edgeglm.errors import BudgetError, DamagedFileError, EdgeglmError, UsageError
from edgeglm.export.write import output, writer
from edgeglm.export.write.journal import Journal, Record, job_statement, read_journal
from edgeglm.export.write.record import Extents, Run, Written
from edgeglm.export.write.writer import BundleWriter
from edgeglm.manifest import MANIFEST
from tests.bundles import ROWS_BYTES, sample_manifest, write_bundle
from tests.export.pack_crash import JOBS, contents, export

ROOT = Path(__file__).parents[3]
CRASH = [sys.executable, "-m", "tests.export.pack_crash"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bundle of `pack_crash` as an unbroken run writes it."""
    target = tmp_path_factory.mktemp("unbroken") / "b"
    export(target)
    return contents(target)


def test_a_bundle_is_written_whole_and_verifies(tmp_path: Path) -> None:
    export(tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    verify_bundle(bundle)
    assert os.listdir(tmp_path) == ["b"]
    assert sorted(bundle.manifest.files) == sorted(contents(tmp_path / "b").keys() - {MANIFEST})


def test_two_runs_give_the_same_bytes(tmp_path: Path, expected: dict[str, bytes]) -> None:
    export(tmp_path / "b")
    assert contents(tmp_path / "b") == expected


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["kill"], ["kill", "over"], ["interrupt", "over"], ["fail", "over"]], ids=str)
def test_struck_at_any_system_call_nothing_is_lost(tmp_path: Path, arguments: list[str]) -> None:
    command = [*CRASH, str(tmp_path / "b"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_times_it_resumes_to_the_same_bytes(
    tmp_path: Path, expected: dict[str, bytes], seed: int
) -> None:
    moments = random.Random(seed)
    for _ in range(3):
        child = subprocess.Popen([*CRASH, str(tmp_path / "b"), "slow"], cwd=ROOT)
        time.sleep(moments.uniform(0.1, 0.6))
        child.kill()
        child.wait()
    export(tmp_path / "b")
    assert contents(tmp_path / "b") == expected
    assert os.listdir(tmp_path) == ["b"]


def wait_for_job(target: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        record = read_journal(Path(f"{target}.partial/journal"))
        if record and record.jobs:
            return
        time.sleep(0.01)
    raise TimeoutError


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, expected: dict[str, bytes]) -> None:
    target = tmp_path / "b"
    child = subprocess.Popen([*CRASH, str(target), "slow"], cwd=ROOT, stderr=subprocess.PIPE)
    wait_for_job(target)
    with pytest.raises(UsageError, match="another export is writing it"):
        export(target)
    child.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in child.communicate()[1]
    with BundleWriter(target, "key") as bundle:
        assert bundle.resumed_jobs >= 1
        assert bundle.done("layer 0")
    export(target)
    assert contents(target) == expected


def stop_after_a_job(target: Path, key: str = "key") -> None:
    with BundleWriter(target, key) as bundle:
        bundle.file("decoder/weights.bin", 100).pwrite(0, b"old")
        bundle.complete("job")
    assert Path(f"{target}.partial/journal").exists()


def test_a_partial_of_another_key_is_thrown_away_with_a_note(tmp_path: Path) -> None:
    stop_after_a_job(tmp_path / "b", "old")
    with BundleWriter(tmp_path / "b", "new") as bundle:
        assert bundle.note is not None
        assert "another model, option or version" in bundle.note
        assert (bundle.resumed_jobs, bundle.done("job")) == (0, False)
    assert os.listdir(tmp_path) == []


def test_without_resume_a_partial_is_thrown_away(tmp_path: Path) -> None:
    stop_after_a_job(tmp_path / "b")
    with BundleWriter(tmp_path / "b", "key", resume=False) as bundle:
        assert (bundle.note, bundle.done("job")) == (None, False)
        assert not Path(f"{tmp_path}/b.partial/bundle/decoder").exists()


def flip(journal: Path) -> None:
    data = bytearray(journal.read_bytes())
    data[12] ^= 1
    journal.write_bytes(data)


def shrink(journal: Path) -> None:
    os.truncate(journal.with_name("bundle") / "decoder/weights.bin", 99)


def spoil(journal: Path) -> None:
    """Flip a bit of what a job has written."""
    weights = journal.with_name("bundle") / "decoder/weights.bin"
    data = bytearray(weights.read_bytes())
    data[1] ^= 1
    weights.write_bytes(data)


def lead_away(journal: Path) -> None:
    """Put a link in the place of a folder."""
    folder = journal.with_name("bundle") / "decoder"
    folder.rename(journal.parent.parent / "elsewhere")
    folder.symlink_to(journal.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "note"),
    [
        (flip, "journal is damaged"),
        (shrink, "not as its journal says"),
        (lead_away, "not as its journal says"),
        (spoil, "the partial bundle is damaged"),
    ],
)
def test_a_partial_that_is_damaged_is_thrown_away_with_a_note(
    tmp_path: Path, harm: Callable[[Path], None], note: str
) -> None:
    stop_after_a_job(tmp_path / "b")
    harm(tmp_path / "b.partial/journal")
    with BundleWriter(tmp_path / "b", "key") as bundle:
        assert note in (bundle.note or "")
        assert not bundle.done("job")


@pytest.mark.parametrize("lines", [[range(3000)], [range(0, 3000, 2), range(1, 3000, 2)]], ids=["in order", "strips"])
def test_any_byte_of_a_partial_may_be_damaged(tmp_path: Path, lines: list[range]) -> None:
    """Whatever is damaged between a kill and the next run, the bundle has the bytes of an unbroken export."""

    def make(stop: bool) -> None:
        with BundleWriter(tmp_path / "b", "key") as bundle:
            file = bundle.file("decoder/model.onnx", 3000 * 40 + 400)
            if not bundle.done("one"):
                for line in (line for part in lines for line in part):
                    file.pwrite(line * 40, line.to_bytes(2, "big") * 15)  # 10 bytes are padding
                bundle.complete("one")
            file.pwrite(3000 * 40 + 200, b"half a job, or all of it")
            if stop:
                raise KeyboardInterrupt
            bundle.small("embedding/rows.bin", bytes(ROWS_BYTES))
            bundle.finish(sample_manifest())

    make(stop=False)
    expected = contents(tmp_path / "b")
    moments = random.Random(0)
    for place in [*(moments.randrange(3000 * 40 + 400) for _ in range(4)), 35, 3000 * 40 + 10, 3000 * 40 + 399]:
        shutil.rmtree(tmp_path / "b")
        with suppress(KeyboardInterrupt):
            make(stop=True)
        weights = tmp_path / "b.partial/bundle/decoder/model.onnx"
        data = bytearray(weights.read_bytes())
        data[place] ^= 8
        weights.write_bytes(data)
        make(stop=False)
        assert contents(tmp_path / "b") == expected, place


def test_damage_while_an_export_runs_is_not_sealed(tmp_path: Path) -> None:
    """Bytes that are read back to be hashed must be those that were written."""
    with BundleWriter(tmp_path / "b", "key") as bundle:
        file = bundle.file("decoder/weights.bin", 300_000)
        for offset in (200_000, 100_000, 0):
            file.pwrite(offset, b"a" * 100_000)
            bundle.complete(f"{offset}")
        os.pwrite(file.descriptor, b"b", 250_000)
        with pytest.raises(DamagedFileError, match="the disk does not hold what was written"):
            bundle.finish(sample_manifest())
    assert not (tmp_path / "b").exists()


def test_other_files_of_weights_are_compared_with_what_was_read(tmp_path: Path) -> None:
    asked = []

    def resumed(source: str, answer: bool) -> int:
        def holds(notes: Mapping[str, str]) -> bool:
            asked.append(dict(notes))
            return answer

        with BundleWriter(tmp_path / "b", "key", source=source, holds=holds) as bundle:
            assert (bundle.note is None) or "other weights" in bundle.note
            if not bundle.done("job"):
                bundle.file("decoder/weights.bin", 100).pwrite(0, b"old")
                bundle.complete("job", "hash")
            return bundle.resumed_jobs

    assert [resumed("1", False), resumed("1", False)] == [0, 1]
    assert asked == []  # the same files are believed
    assert [resumed("2", True), resumed("2", False)] == [1, 1]
    assert asked == [{"job": "hash"}]
    assert resumed("3", False) == 0


def test_a_last_line_that_was_torn_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    two = job_statement("two", "", {"a b": Written(0xAB, [Run(0, 4), Run(4, 1, 3, 2)])})
    Journal(path, Record("key")).append(["source s", "file 7 a b", "job one\ta note", two])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        record = read_journal(path)
        lines = whole[:length].count(b"\n")
        assert (record is None) == (lines == 0)
        assert record is None or bool(record.source) + len(record.sizes) + len(record.jobs) == lines - 1
    path.write_bytes(whole[:-3])
    Journal(path, read_journal(path) or Record("")).append([two])
    written = {"one": {}, "two": {"a b": Written(0xAB, [Run(0, 4), Run(4, 1, 3, 2)])}}
    assert read_journal(path) == Record("key", {"a b": 7}, {"one": "a note", "two": ""}, len(whole), "s", written)


def test_a_statement_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not one line"):
        Journal(tmp_path / "journal", Record("key")).append(["job a\njob b"])


def test_a_job_is_stated_only_after_its_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_BYTES", 3000)
    unsynced: set[int] = set()
    pwrite, write, fdatasync = os.pwrite, os.write, os.fdatasync

    def watch_pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        unsynced.add(descriptor)
        return pwrite(descriptor, data, offset)

    def watch_fdatasync(descriptor: int) -> None:
        unsynced.discard(descriptor)
        fdatasync(descriptor)

    statements = []

    def watch_write(descriptor: int, data: memoryview) -> int:
        statements.append((bytes(data), set(unsynced)))
        return write(descriptor, data)

    monkeypatch.setattr(os, "pwrite", watch_pwrite)
    monkeypatch.setattr(os, "fdatasync", watch_fdatasync)
    monkeypatch.setattr(os, "write", watch_write)
    export(tmp_path / "b")
    assert [left for data, left in statements if b"job" in data] == [set()] * (JOBS + 1)


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


def test_a_new_size_under_an_old_key_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    stop_after_a_job(tmp_path / "b")
    with BundleWriter(tmp_path / "b", "key") as bundle, pytest.raises(ValueError, match="100 bytes under this key"):
        bundle.file("decoder/weights.bin", 101)


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
