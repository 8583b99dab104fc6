"""Keys of a tokenizer's and a processor's files: each is honoured, silent for a reason, or named in a note."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoTokenizer

from edgeglm.devices.loader import load_profile
from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.sidecar_keys import FILES, unheard
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.runtimes.text.sidecars import Sidecars
from edgeglm.runtimes.text.tokenizer import BoundedTokenizer
from tests.export.checkpoints import HEADER, make, pack

# Every file of settings that a checkpoint may have; adapter_config.json is of an adapter (test_adapter_settings).
SETTINGS = (
    *FILES, "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json:image_processor"
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def put(folder: Path, name: str, members: Mapping[str, object]) -> None:
    """Add members to a file, or to an object in it."""
    file, _, inner = name.partition(":")
    whole = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (whole.setdefault(inner, {}) if inner else whole).update(members)
    (folder / file).write_text(json.dumps(whole))


@pytest.mark.parametrize("name", SETTINGS)
def test_an_export_names_an_unknown_key_of_every_file(name: str, folder: Path) -> None:
    if name == "chat_template.json":
        put(folder, name, {"chat_template": (folder / "chat_template.jinja").read_text()})
    put(folder, name, {"frobnicate": 7, "turned_off": None if name in FILES else 0})
    notes = open_export(Request(folder, "own", load_profile("cpu"), "fp32")).notes
    (note,) = [note for note in notes if "frobnicate" in note]
    assert name.partition(":")[0] in note
    assert note.isprintable()


def test_the_demo_says_nothing_that_is_not_honoured() -> None:
    assert list(unheard(Checkpoint.open(DEMO))) == []


@pytest.mark.parametrize("name", FILES)
def test_what_is_silent_or_turned_off_is_not_named(name: str, tmp_path: Path) -> None:
    make(tmp_path, pack(HEADER))
    put(tmp_path, name, {**dict.fromkeys(FILES[name], "x"), "off": False, "none": None, "empty": []})
    assert list(unheard(Checkpoint.open(tmp_path))) == []
    put(tmp_path, name, {f"key{number}": 1 for number in range(20)})
    (note,) = unheard(Checkpoint.open(tmp_path))
    assert note.startswith(f"{name}: not honoured: key0, key1, key10")
    assert note.endswith(" and 12 more")


def test_a_key_that_the_tokenizers_library_does_not_know_is_refused(folder: Path) -> None:
    put(folder, "tokenizer.json", {"frobnicate": 7})
    with pytest.raises(DamagedFileError, match=r"tokenizer\.json: is not a tokenizer that works: "):
        open_export(Request(folder, "own", load_profile("cpu"), "fp32"))


@pytest.mark.parametrize("key", ["extra_special_tokens", "additional_special_tokens"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_listed_tokens_are_those_of_transformers(name: str, key: str, folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for old in ("added_tokens_decoder", "extra_special_tokens"):
        config.pop(old, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    text = "Open<|newer|><|new|>."
    assert len(BoundedTokenizer(Sidecars(folder)).encode(text)) > 4
    put(folder, name, {key: ["<|new|>", "<|newer|>"]})
    tokens = BoundedTokenizer(Sidecars(folder)).encode(text)
    assert tokens == AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    assert len(tokens) == 4
