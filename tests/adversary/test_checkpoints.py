"""A checkpoint whose JSON or header says anything: opened, or refused in a line, before any work starts."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeglm.devices.loader import load_profile
from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from tests.adversary.fuzzer import Fuzzer
from tests.adversary.mutate import mutate


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo, whose files may be changed."""
    return Path(shutil.copytree(DEMO, tmp_path / "checkpoint"))


# What stands in a file's place after a torn download or a clumsy move, and what is said of it.
NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "is not a regular file"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "link to nothing"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}
READ = (
    "config.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "model.safetensors",
    "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", READ)
def test_what_is_no_file_is_refused_by_its_name(checkpoint: Path, name: str, kind: str) -> None:
    make, why = NO_FILES[kind]
    file = checkpoint / name
    file.unlink(missing_ok=True)
    make(file)
    with pytest.raises((DamagedFileError, UsageError), match=f"^{file}: .*{why}.*; ") as refused:
        open_export(Request(checkpoint, "copy", load_profile("cpu")))
    del refused
    assert not open_below(checkpoint)


def open_below(folder: Path) -> list[str]:
    """Return the open files of this process below `folder`, whatever else it has open or a collector closes."""
    links = Path("/proc/self/fd").iterdir()
    opened = [os.readlink(link) for link in links if link.is_symlink()]
    return [path for path in opened if path.startswith(f"{folder}/")]


SIDECARS = sorted(path.name for path in DEMO.glob("*.json") if path.name != "tokenizer.json")


def test_any_sidecar_is_taken_or_refused(checkpoint: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer, profile = fuzz("a value of a checkpoint's JSON replaced"), load_profile("cpu")
    for _ in fuzzer.attempts():
        name = fuzzer.random.choice(SIDECARS)
        tree, what = mutate(json.loads((DEMO / name).read_text()), fuzzer.random)
        (checkpoint / name).write_text(json.dumps(tree))
        fuzzer.call(f"{name}: {what}", lambda: open_export(Request(checkpoint, "copy", profile)))
        shutil.copy(DEMO / name, checkpoint / name)


def test_any_bytes_of_a_sidecar_are_taken_or_refused(checkpoint: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer, profile = fuzz("a byte of a checkpoint's sidecar changed"), load_profile("cpu")
    for _ in fuzzer.attempts():
        name = fuzzer.random.choice([*SIDECARS, "chat_template.jinja"])
        data = bytearray((DEMO / name).read_bytes())
        offset = fuzzer.random.randrange(len(data))
        data[offset] = fuzzer.random.randrange(256)
        if fuzzer.random.random() < 0.2:
            del data[offset:]
        (checkpoint / name).write_bytes(data)
        fuzzer.call(f"{name} at {offset}", lambda: open_export(Request(checkpoint, "copy", profile)))
        shutil.copy(DEMO / name, checkpoint / name)


def test_any_header_is_taken_or_refused(checkpoint: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer, file = fuzz("a header of weights mutated"), checkpoint / "model.safetensors"
    raw = file.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:end])
    for _ in fuzzer.attempts():
        if fuzzer.random.random() < 0.5:
            tree, what = mutate(header, fuzzer.random)
            text = json.dumps(tree).encode()
        else:
            changed, offset = bytearray(raw[8:end]), fuzzer.random.randrange(end - 8)
            changed[offset] = fuzzer.random.randrange(256)
            text, what = bytes(changed), f"byte {offset}"
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(file, len(text) + 8 + len(raw) - end)
        fuzzer.call(what, lambda: Checkpoint.open(checkpoint))
