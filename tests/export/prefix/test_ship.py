"""A prefix that ships with the bundle: the answers of a prompt that is computed, and never a wrong byte."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.blocks import KIND
from edgeglm.bundle import read_manifest
from edgeglm.errors import BudgetError, DamagedFileError
from edgeglm.export.api import ExportRequest, PlanRequest, export, plan
from edgeglm.export.prefix import ship_worker
from edgeglm.export.prefix.lengths import ON_DEVICE
from edgeglm.machine import read_machine
from edgeglm.runtimes.core import prefixes
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.prefixes import FOLDER, TOKENS, Keep
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.engines.ort import engine
from edgeglm.runtimes.text.messages import Message, message
from tests.cli.commands import check_failure, left_of, run
from tests.export.tiny import SHAPES, save
from tests.runtimes.demo import SCREEN

Capture = pytest.CaptureFixture[str]
TEXT = "Today is Sunday.\n" + "You tap what you are told to tap, and say where. " * 56
LONGER = TEXT + "Never say no. " * 80
MIB = 1 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("prefixes")
    for name, text in (("one.txt", TEXT), ("two.txt", LONGER)):
        (folder / name).write_text(text)
    return folder / "one.txt", folder / "two.txt"


@pytest.fixture(scope="module")
def shipping(files: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipping") / "bundle"
    export(ExportRequest(target="cpu", precision="int8", prefixes=files, output=folder))
    return folder


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edgeglm" / KIND


def asked(text: str, image: Path | None = None) -> list[Message]:
    return [message("system", text), message("user", "Select OK", image)]


def ask(folder: Path, messages: list[Message], keep: Keep | None = None) -> Answer:
    with Runner(folder, keep=keep) as runner:
        return runner.answer(messages, max_new_tokens=12)


def without(folder: Path, target: Path) -> Path:
    """The same bundle without its prefixes."""
    shutil.copytree(folder, target)
    manifest = read_manifest(folder)
    kept = {name: file for name, file in manifest.files.items() if not name.startswith(f"{FOLDER}/")}
    shutil.rmtree(target / FOLDER)
    (target / "manifest.json").write_bytes(msgspec.structs.replace(manifest, files=kept).to_bytes())
    return target


@pytest.mark.parametrize("image", [None, SCREEN], ids=["text", "image"])
def test_a_first_answer_needs_no_prefill_of_what_ships(
    shipping: Path, tmp_path: Path, states: Path, image: Path | None
) -> None:
    plain = without(shipping, tmp_path / "plain")
    for text in (TEXT, LONGER):
        answer, computed = ask(shipping, asked(text, image)), ask(plain, asked(text, image))
        assert answer.tokens == computed.tokens
        assert (answer.restored_tokens > 2 * TOKENS, computed.restored_tokens) == (True, 0)
        assert answer.prefilled_tokens < (20 if image is None else 100)
        assert answer.notes == computed.notes
    assert not states.exists()


@pytest.mark.slow
def test_two_exports_ship_the_same_bytes(shipping: Path, files: tuple[Path, ...], tmp_path: Path) -> None:
    export(ExportRequest(target="cpu", precision="int8", prefixes=files, output=tmp_path / "bundle"))
    names = sorted(path.relative_to(shipping) for path in shipping.rglob("*") if path.is_file())
    assert any(name.parts[0] == FOLDER for name in names)
    assert names == sorted(path.relative_to(tmp_path / "bundle") for path in tmp_path.rglob("*") if path.is_file())
    assert all((shipping / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes() for name in names)


def test_what_ships_is_not_written_into_the_store(shipping: Path, states: Path) -> None:
    answer = ask(shipping, asked(TEXT), Keep(64 * MIB))
    assert answer.restored_tokens > 2 * TOKENS
    assert not states.exists()
    ask(shipping, asked(f"{TEXT}And more. " + "It is. " * 200), Keep(64 * MIB))
    assert len(list(states.iterdir())) > 1  # all but the blocks that it shares with the bundle
    shared = {path.name for path in states.iterdir()} & {path.name for path in (shipping / FOLDER).iterdir()}
    assert not shared


def test_prefixes_that_begin_alike_share_blocks(shipping: Path) -> None:
    manifest = read_manifest(shipping)
    one, two = map(int, str(manifest.provenance.options["prefix_tokens"]).split(","))
    blocks = [name for name in manifest.files if name.startswith(f"{FOLDER}/")]
    assert two > one > 2 * TOKENS
    assert len(blocks) == -(-one // TOKENS) + -(-two // TOKENS) - one // TOKENS


def test_another_day_is_another_prefix(shipping: Path, tmp_path: Path, states: Path) -> None:
    monday = asked(TEXT.replace("Sunday", "Monday"))
    answer = ask(shipping, monday)
    assert (answer.restored_tokens, answer.notes) == (0, [])
    assert answer.tokens == ask(without(shipping, tmp_path / "plain"), monday).tokens


@pytest.mark.parametrize("what", ["engine", "processor"])
def test_another_engine_or_processor_computes_its_own_and_says_so(
    what: str, shipping: Path, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other = ask(shipping, asked(TEXT)), replace(read_machine(), int8_kernels="dotprod", cpu_features=())
    if what == "engine":
        monkeypatch.setattr(engine, "version", lambda: "0.0")
    else:
        monkeypatch.setattr(prefixes, "read_machine", lambda: other)
    answer = ask(shipping, asked(TEXT), Keep(64 * MIB))
    assert (answer.tokens, answer.restored_tokens) == (whole.tokens, 0)
    (note,) = answer.notes
    assert note.startswith(
        f"the bundle's prefix was computed by {read_manifest(shipping).provenance.options['prefix_by']}"
    )
    assert ("0.0 on" if what == "engine" else "(dotprod)") in note
    assert ask(shipping, asked(TEXT), Keep(64 * MIB)).restored_tokens > 2 * TOKENS  # by its own, from the store
    assert ask(shipping, asked("Hello")).notes == []  # of which nothing ships


def test_a_changed_byte_is_damage(shipping: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shipping, tmp_path / "bundle")
    file = next((folder / FOLDER).iterdir())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedFileError, match=file.name):
        Runner(folder)


def test_a_byte_that_changes_behind_the_check_is_damage(shipping: Path, tmp_path: Path, states: Path) -> None:
    folder = shutil.copytree(shipping, tmp_path / "bundle")
    with Runner(folder) as runner:
        for file in (folder / FOLDER).iterdir():
            file.write_bytes(file.read_bytes()[:-1] + b"\0")
        with pytest.raises(DamagedFileError, match="was changed since it was opened"):
            runner.answer(asked(TEXT), max_new_tokens=1)


def test_a_folder_that_anyone_may_write_or_none_is_enough(shipping: Path, tmp_path: Path, states: Path) -> None:
    for mode in (0o666, 0o444):
        folder = shutil.copytree(shipping, tmp_path / f"{mode}")
        for file in (folder / FOLDER).iterdir():
            file.chmod(mode)
        (folder / FOLDER).chmod(0o555)
        assert ask(folder, asked(TEXT)).restored_tokens > 2 * TOKENS
        (folder / FOLDER).chmod(0o755)
    own = {path.stat().st_mode & 0o777 for path in (shipping / FOLDER).iterdir()}
    assert own == {(shipping / "run.pyz").stat().st_mode & 0o777}


def test_the_plan_knows_what_ships(shipping: Path, files: tuple[Path, ...], capsys: Capture) -> None:
    request = PlanRequest(target="cpu", precision="int8")
    bare = plan(request)
    one, longer = (plan(PlanRequest(target="cpu", precision="int8", prefixes=(file,))) for file in files)
    shipped = sum((shipping / FOLDER / path.name).stat().st_size for path in (shipping / FOLDER).iterdir())
    shared = shipped - (longer.chosen.bundle_bytes - bare.chosen.bundle_bytes)
    rest = one.chosen.bundle_bytes - bare.chosen.bundle_bytes
    assert 0 < shared < rest  # the last block of the shorter one, which nobody shares
    assert longer.chosen.bundle_bytes - bare.chosen.bundle_bytes == pytest.approx(shipped - shared)
    assert bare.chosen.device_peak_rss_bytes == longer.chosen.device_peak_rss_bytes
    done = run(capsys, "plan", "--target", "cpu", "--precision", "int8", "--prefix", files[0], "--json")
    assert json.loads(done[1])["bundle_bytes"] == one.chosen.bundle_bytes


def test_a_disk_without_room_for_the_state_is_a_line(
    shipping: Path, files: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship_worker, "NO_LIMIT", 1000)
    with pytest.raises(BudgetError, match="has no room on the disk"):
        ship_worker.compute(ship_worker.Task(without(shipping, tmp_path / "plain"), files[:1]), lambda _: None)


@pytest.mark.parametrize(
    ("content", "options", "status", "why"),
    [
        (None, "", 2, "cannot be read"),
        (b" \n", "", 2, "is empty"),
        (b"\xff\xfe", "", 2, "is not UTF-8"),
        (TEXT.encode() * 20, "", 5, r"takes \d+ tokens, and a conversation has 8192; shorten it"),
        (b"You tap.", "--context 8", 5, r"takes \d+ tokens, and a conversation has 8"),
        (b"You tap.", "--max-ram 240MiB", 5, "240MiB is too little"),
        (b"You tap.", "--target jetson-orin", 3, "the decoder on TensorRT, which gives no keys and values away"),
        (b"You tap.", "--target rpi5", 3, f"rpi5 is aarch64 and this machine .*{re.escape(ON_DEVICE)}"),
    ],
)
def test_a_prefix_that_cannot_ship_is_one_line_before_work_starts(
    content: bytes | None, options: str, status: int, why: str, tmp_path: Path, capsys: Capture
) -> None:
    if options.endswith("rpi5") and read_machine().architecture != "x86_64":
        pytest.skip("this machine is of that architecture")
    file, target = tmp_path / "prefix.txt", tmp_path / "out" / "bundle"
    if content is not None:
        file.write_bytes(content)
    given = ["--target", "cpu", "--prefix", file, "-o", target, *options.split()]
    check_failure(run(capsys, "export", *given), status, why)
    assert left_of(target) == []


def test_a_model_that_takes_no_text_or_a_graph_has_no_prefix(
    tmp_path: Path, files: tuple[Path, ...], capsys: Capture
) -> None:
    save(SHAPES["glm4"], tmp_path / "tiny")
    (tmp_path / "graph.onnx").touch()
    capsys.readouterr()
    for model, why in (("tiny", "has no tokenizer.json, and takes no text"), ("graph.onnx", "is only for checkpoints")):
        done = run(capsys, "export", tmp_path / model, "--target", "cpu", "--prefix", files[0], "-o", tmp_path / "out")
        check_failure(done, 2, why)
