"""The store: what it keeps is read again or not at all, whatever the folder is and whoever is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeglm import store

FILES = {"a.json": b"{}", "b.bin": bytes(range(256)) * 40}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_kept_here", {})
    monkeypatch.setattr(store, "_swept", set())
    return tmp_path / "cache/edgeglm"


def test_what_is_kept_is_found(cache: Path) -> None:
    assert store.find("kind", "key") is None
    store.keep("kind", "key", FILES)
    assert store.find("kind", "key") == FILES
    assert (store.find("kind", "other"), store.find("other", "key")) == (None, None)
    assert [path.name for path in (cache / "kind").iterdir()] == ["key"]
    assert (cache / "kind/key").stat().st_mode & 0o777 == 0o600


def test_a_damaged_entry_is_none_and_is_kept_again(cache: Path) -> None:
    store.keep("kind", "key", FILES)
    file = cache / "kind/key"
    whole = file.read_bytes()
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert store.find("kind", "key") is None, place
    for length in range(0, len(whole), 997):
        file.write_bytes(whole[:length])
        assert store.find("kind", "key") is None, length
    store.keep("kind", "key", FILES)
    assert store.find("kind", "key") == FILES


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_what_others_may_write_is_not_believed(cache: Path, mode: int) -> None:
    store.keep("kind", "key", FILES)
    (cache / "kind/key").chmod(mode)
    assert store.find("kind", "key") is None


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_what_is_no_file_is_none(cache: Path, tmp_path: Path, what: str) -> None:
    store.keep("kind", "key", FILES)
    file = cache / "kind/key"
    file.rename(tmp_path / "elsewhere")
    if what == "link":
        file.symlink_to(tmp_path / "elsewhere")
    elif what == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    assert store.find("kind", "key") is None
    store.keep("kind", "key", FILES)
    assert store.find("kind", "key") == FILES


def impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cache folders that take nothing."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    yield
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/fdinfo")
    yield
    monkeypatch.setenv("XDG_CACHE_HOME", f"/{'n' * 300}")
    yield
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    yield
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without a home
    yield


def test_without_a_folder_this_process_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, _ in enumerate(impossible(tmp_path, monkeypatch)):
        key = f"key {number}"
        assert store.find("kind", key) is None
        store.keep("kind", key, FILES)
        assert store.find("kind", key) == FILES
    assert not (tmp_path / "full/edgeglm/kind").exists() or not list((tmp_path / "full/edgeglm/kind").iterdir())


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(cache: Path) -> None:
    program = textwrap.dedent("""
        import sys, pathlib
        from edgeglm import store
        with store.partial(pathlib.Path(sys.argv[1])) as folder:
            (folder / "half").write_text("half")
            print(folder, flush=True)
            sys.stdin.read()
    """)
    command = [sys.executable, "-c", program, str(cache / "kind/key")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = []
    for process in processes:
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    (cache / "kind/old.1.partial").write_text("of a small entry")
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    store.find("kind", "key")
    assert sorted(path for path in (cache / "kind").iterdir()) == [folders[1]]
    processes[1].communicate("")
    assert list((cache / "kind").iterdir()) == []


def test_who_wants_what_is_being_made_waits_for_it(cache: Path) -> None:
    program = textwrap.dedent("""
        from edgeglm import store
        with store.making("kind", "key"):
            print(store.find("kind", "key"), flush=True)
    """)
    with store.making("kind", "key"):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        store.keep("kind", "key", {"a": b"b"})
    assert process.communicate()[0].strip() == "{'a': b'b'}"
    assert [path.name for path in (cache / "kind").iterdir()] == ["key"]


def test_a_partial_folder_that_was_renamed_stays(cache: Path) -> None:
    with store.partial(cache / "kind/key") as folder:
        (folder / "file").write_text("whole")
        folder.rename(cache / "kind/key")
    assert (cache / "kind/key/file").read_text() == "whole"
    assert len(list((cache / "kind").iterdir())) == 1


def test_many_at_once_keep_and_find_whole_entries() -> None:
    wrong = []

    def work(number: int) -> None:
        for index in range(40):
            store.keep("kind", f"{index % 4}", {"a": bytes([index % 4]) * 5000})
            found = store.find("kind", f"{number % 4}")
            if found not in (None, {"a": bytes([number % 4]) * 5000}):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
