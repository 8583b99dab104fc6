"""The emulated board's cache folder: whatever lies in it is made anew, or one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeglm.errors import UnsupportedError
from edgeglm.export.burn import userland

Change = Callable[[Path], object]


def ready(cache: Path) -> Path:
    """Make a folder of a user land that is up to date."""
    folder = cache / "edgeglm/aarch64"
    folder.mkdir(parents=True)
    return folder


def write(data: bytes) -> Change:
    return lambda stamp: stamp.write_bytes(data)


def endless(stamp: Path) -> None:
    with stamp.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    "change",
    [os.mkfifo, Path.mkdir, write(b"\xff\xfe"), write(b""), endless, lambda stamp: stamp.symlink_to("/dev/zero")],
    ids=["FIFO", "folder", "not UTF-8", "empty", "huge", "without end"],
)
def test_an_odd_recipe_means_that_it_is_made_anew(
    change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(userland, "_unpack_debian", made.append)
    monkeypatch.setattr(userland, "_install", lambda _, site: site.mkdir())
    folder = ready(tmp_path)
    change(folder / "recipe")
    assert userland.set_up(["numpy"]).folder == folder
    assert made == [folder]
    assert userland.set_up(["numpy"]).site.is_dir()
    assert made == [folder]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: (cache / "edgeglm/aarch64.lock").mkdir(),
        lambda cache: (cache / "edgeglm/aarch64.lock").symlink_to("/dev/zero"),
        lambda cache: (cache / "edgeglm/aarch64").write_text("a file"),
    ],
    ids=["folder", "link", "file"],
)
def test_an_odd_folder_is_one_line(change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "edgeglm").mkdir()
    change(tmp_path)
    with pytest.raises(UnsupportedError, match=r"qemu: .*aarch64.* cannot be used: .*; set XDG_CACHE_HOME to a folder"):
        userland.set_up(["numpy"])
