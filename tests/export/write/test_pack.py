"""Writing bundles: killed, interrupted and starved at every step."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.write import writer
from edgeglm.export.write.journal import Journal, Record, job_statement, read_journal
from edgeglm.export.write.record import Run, Written
from edgeglm.export.write.writer import BundleWriter
from edgeglm.manifest import MANIFEST
from tests.bundles import ROWS_BYTES, sample_manifest
from tests.export.pack_crash import JOBS, contents, export

ROOT = Path(__file__).parents[3]
CRASH = [sys.executable, "-m", "tests.export.pack_crash"]


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


def test_a_new_size_under_an_old_key_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    stop_after_a_job(tmp_path / "b")
    with BundleWriter(tmp_path / "b", "key") as bundle, pytest.raises(ValueError, match="100 bytes under this key"):
        bundle.file("decoder/weights.bin", 101)


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
