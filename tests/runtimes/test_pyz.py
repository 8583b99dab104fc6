"""``run.pyz`` checks itself before it imports itself."""

from __future__ import annotations

import ast
import hashlib
import json
import marshal
import os
import random
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeglm.manifest import MANIFEST
from edgeglm.runtimes.bytecode import KIND
from edgeglm.store import seal, unseal
from tests.cli.commands import LINE

pytest.importorskip("edgeglm.export.write.pyz")

from edgeglm.export.write.pyz import build_pyz

SAMPLES = 12
SERVES = pytest.mark.skipif(find_spec("uvicorn") is None, reason="needs the extra serve")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive beside a manifest that has its hash and nothing else."""
    folder, data = tmp_path_factory.mktemp("pyz"), build_pyz()
    (folder / "run.pyz").write_bytes(data)
    files = {"run.pyz": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    return folder


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(folder / "run.pyz"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, errors="replace")


def contents(folder: Path) -> tuple[bytes, range]:
    """The archive, and the positions of all that Python does not read itself before it runs the first line."""
    data = (folder / "run.pyz").read_bytes()
    with zipfile.ZipFile(folder / "run.pyz") as archive:
        first, second = archive.infolist()[:2]
        assert first.filename == "__main__.py"
        return data, range(second.header_offset, archive.start_dir)


def test_a_flipped_bit_is_one_line_before_anything_is_imported(alone: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(alone, tmp_path / "copy"))
    data, positions = contents(alone)
    chance = random.Random(1)
    for position in chance.sample(positions, SAMPLES):
        damaged = bytearray(data)
        damaged[position] ^= 1 << chance.randrange(8)
        (copy / "run.pyz").write_bytes(damaged)
        done = start(copy, "--prompt", "x")
        assert (done.returncode, done.stdout) == (6, ""), (position, done.stderr)
        assert done.stderr.startswith(f"edgeglm: {copy}/run.pyz: is damaged or was changed; copy the bundle again")
        assert LINE.fullmatch(done.stderr)


def test_what_python_reads_itself_is_two_percent_of_the_archive(alone: Path) -> None:
    data, positions = contents(alone)
    assert len(positions) > 0.98 * len(data)


def test_one_that_is_whole_goes_on_to_the_bundle(alone: Path, tmp_path: Path) -> None:
    done = start(alone, "--prompt", "x")
    assert (done.returncode, done.stdout) == (6, "")
    assert f"edgeglm: {alone}/manifest.json: " in done.stderr
    copy = Path(shutil.copytree(alone, tmp_path / "copy"))
    (tmp_path / "link.pyz").symlink_to(copy / "run.pyz")
    (copy / MANIFEST).unlink()
    line = [sys.executable, str(tmp_path / "link.pyz"), "--prompt", "x"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a bundle: it has no manifest.json" in done.stderr


@pytest.mark.parametrize(
    ("subcommand", "name"), [([], "python run.pyz"), pytest.param(["serve"], "python run.pyz serve", marks=SERVES)]
)
def test_its_help_and_errors_name_the_program_that_is_there(alone: Path, subcommand: list[str], name: str) -> None:
    assert f"usage: {name} [-h]" in start(alone, *subcommand, "--help").stdout
    assert start(alone, *subcommand, "--nonsense").stderr.rstrip().endswith(f"run {name} --help")


@pytest.mark.parametrize("manifest", [b"", b"[" * 100_000, b"[]", b'{"files": 1}', b"\xff", None])
def test_a_damaged_manifest_is_one_line_without_waiting(alone: Path, tmp_path: Path, manifest: bytes | None) -> None:
    copy = Path(shutil.copytree(alone, tmp_path / "copy"))
    (copy / MANIFEST).unlink()
    if manifest is None:
        os.mkfifo(copy / MANIFEST)
    else:
        (copy / MANIFEST).write_bytes(manifest)
    done = start(copy, "--prompt", "x")
    assert (done.returncode, done.stdout) == (6, "")
    assert LINE.fullmatch(done.stderr), done.stderr


def started(folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """A start whose cache is in a folder, and which may keep compiled code."""
    line = [sys.executable, str(folder / "run.pyz"), "--prompt", "x"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_code_is_compiled_once_and_only_what_was_kept_is_run(alone: Path, tmp_path: Path) -> None:
    first = started(alone, tmp_path)
    (entry,) = (tmp_path / "edgeglm" / KIND).iterdir()
    codes = unseal(entry.read_bytes(), KIND, entry.name)
    assert codes is not None
    assert "edgeglm.runtimes.program" in codes
    other = marshal.dumps(compile("raise SystemExit(42)", "other", "exec"))
    entry.write_bytes(seal({**codes, "edgeglm.runtimes.program": other}, KIND, entry.name))
    assert started(alone, tmp_path).returncode == 42  # it is what is imported
    damaged = bytearray(entry.read_bytes())
    damaged[-1] ^= 1
    entry.write_bytes(damaged)
    again = started(alone, tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (first.returncode, first.stdout, first.stderr)
    made = unseal(entry.read_bytes(), KIND, entry.name)
    assert made is not None
    assert made.keys() == codes.keys()  # the bytes of equal code differ by what is shared in memory
    assert made["edgeglm.runtimes.program"] != other


def test_another_archive_does_not_run_the_code_of_this_one(alone: Path, tmp_path: Path) -> None:
    started(alone, tmp_path)
    other = Path(shutil.copytree(alone, tmp_path / "other"))
    data = (other / "run.pyz").read_bytes()
    (other / "run.pyz").write_bytes(data.replace(b"#!/usr/bin/env python3", b"#!/usr/bin/env python9", 1))
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["files"]["run.pyz"]["sha256"] = hashlib.sha256((other / "run.pyz").read_bytes()).hexdigest()
    (other / MANIFEST).write_text(json.dumps(manifest))
    started(other, tmp_path)
    assert len(list((tmp_path / "edgeglm" / KIND).iterdir())) == 2


def test_without_a_folder_it_starts_all_the_same(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "edgeglm").write_text("a file")
    done = started(alone, tmp_path)
    assert (done.returncode, done.stdout) == (6, "")
    assert LINE.fullmatch(done.stderr)


def test_what_it_imports_of_edgeglm_is_in_it(alone: Path) -> None:
    with zipfile.ZipFile(alone / "run.pyz") as archive:
        names = {name for name in archive.namelist() if name.endswith(".py")}
        texts = {name: archive.read(name).decode() for name in names}
    asked = set()
    for name, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edgeglm."):
                asked.add((name, node.module.replace(".", "/")))
    assert len(asked) > 100
    missing = {(name, path) for name, path in asked if not {f"{path}.py", f"{path}/__init__.py"} & names}
    assert missing == set()
