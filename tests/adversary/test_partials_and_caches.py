"""Bytes that were written once: partial bundles damaged behind a kill, and cache folders damaged between two runs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeglm import store
from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO, DEMO_NAME
from edgeglm.export.predict.forecast import forecast
from edgeglm.export.prepare.types import Request
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.export.write import writer
from tests.adversary.fuzzer import Fuzzer
from tests.export.pack_crash import CALLS, contents, export, strike_at


def spoil(choose: random.Random, file: Path) -> str:
    """Damage a file in one of the ways in which files are damaged; what was done."""
    size = file.stat().st_size
    how = choose.choice(["flip", "flip", "flip", "cut", "grow", "remove", "empty"])
    if how == "remove":
        file.unlink()
    elif how in ("cut", "empty"):
        os.truncate(file, choose.randrange(size) if how == "cut" and size else 0)
    else:
        place = choose.randrange(size) if how == "flip" and size else size
        with file.open("r+b") as opened:
            opened.seek(place)
            byte = opened.read(1) or b"\0"
            opened.seek(place)
            opened.write(bytes([byte[0] ^ 1 << choose.randrange(8)]))
    return f"{how} {file.name}"


def snapshot(target: Path, call: int, copy: Path) -> None:
    """Export, and copy what a kill at a system call would leave; nothing where there are fewer calls."""
    partial, kept = Path(f"{target}.partial"), {name: getattr(os, name) for name in CALLS}

    def keep() -> None:
        if partial.exists():
            shutil.copytree(partial, copy)

    strike_at(call, keep)
    try:
        export(target)
    finally:
        for name, function in kept.items():
            setattr(os, name, function)


def test_a_damaged_partial_bundle_is_never_sealed(
    fuzz: Callable[[str], Fuzzer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BATCH_BYTES", 1)  # every job is committed
    for name in ("fsync", "fdatasync"):  # a copy takes what the kernel has
        monkeypatch.setattr(os, name, lambda _: None)
    fuzzer, target, copy = fuzz("partial bundles, damaged behind a kill"), tmp_path / "b", tmp_path / "copy"
    export(target)
    expected = contents(target)
    for _ in fuzzer.attempts():
        shutil.rmtree(target)
        call = fuzzer.random.randrange(1, 200)
        snapshot(target, call, copy)
        done = "nothing"
        if copy.exists():
            shutil.rmtree(target)
            copy.rename(Path(f"{target}.partial"))
            files = sorted(path for path in Path(f"{target}.partial").rglob("*") if path.is_file())
            if files:
                done = spoil(fuzzer.random, fuzzer.random.choice(files))
            export(target)
        if contents(target) != expected:
            fuzzer.fault(f"call {call}, {done}", "other bytes")
        elif sorted(os.listdir(tmp_path)) != ["b"]:
            fuzzer.fault(f"call {call}, {done}", f"left {os.listdir(tmp_path)}")
        else:
            fuzzer.saw("same bytes")


def test_a_damaged_cache_folder_changes_no_result(
    fuzz: Callable[[str], Fuzzer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request = Request(DEMO, DEMO_NAME, load_profile("cpu"), shipped=DEMO_DATA)
    expected, fuzzer = forecast(request), fuzz("cache folders, damaged between two runs")
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "cache", whole)
    for _ in fuzzer.attempts():
        files = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
        done = spoil(fuzzer.random, fuzzer.random.choice(files))
        monkeypatch.setattr(store, "_swept", set())
        try:
            found = forecast(request)
        except Exception as error:
            fuzzer.fault(done, f"{type(error).__name__}: {error}")
            shutil.rmtree(tmp_path / "cache")
            shutil.copytree(whole, tmp_path / "cache")
            continue
        if found != expected:
            fuzzer.fault(done, "another result")
        elif list((tmp_path / "cache").rglob("*.partial")):
            fuzzer.fault(done, "something is left")
        else:
            fuzzer.saw("same result")
