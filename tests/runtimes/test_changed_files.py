"""Files of a bundle that change while a runner lives: it says so in one line, and goes on when they are back."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle, load_bundle, verify_bundle
from edgeglm.errors import DamagedFileError
from edgeglm.runtimes.core.embedding import DTYPES, EmbeddingRows
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.engines.ort import engine as ort
from edgeglm.runtimes.text import chat
from edgeglm.runtimes.text.messages import message
from tests.bundles import reseal, write_bundle
from tests.runtimes.demo import OTHER_SCREEN, SCREEN

Harm = Callable[[Path], object]


@pytest.fixture
def copy(exact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exact, tmp_path / "copy"))


@pytest.fixture(params=["modules that stay", "modules that make room"])
def runner(copy: Path, request: pytest.FixtureRequest) -> Iterator[Runner]:
    """One that has both modules in memory, or that opens them anew for each picture."""
    with Runner(copy, max_ram=1 << 40) as runner:
        if request.param == "modules that make room":
            runner.pictures.spare = lambda: 0
        ask(runner, SCREEN)
        ask(runner, SCREEN.with_name("0003.webp"))
        yield runner


def ask(runner: Runner, screen: Path) -> str:
    return runner.answer([message("user", "Select OK", screen)], max_new_tokens=24).text


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 4)
        file.write(os.urandom(1 << 16))


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[:-4096] + os.urandom(4096))
    os.replace(new, path)


def shrink(path: Path) -> None:
    os.truncate(path, 4096)


HARM = [
    ("vision/weights.bin", overwrite),
    ("vision/weights.bin", replace),
    ("vision/weights.bin", shrink),
    ("vision/model.onnx", Path.unlink),
    ("decoder/weights.bin", shrink),
    ("decoder/weights.bin", overwrite),
    ("embedding/rows.bin", overwrite),
    ("embedding/rows.bin", shrink),
]


@pytest.mark.parametrize(("relative", "harm"), HARM)
def test_a_file_that_changed_between_two_answers_is_noticed(
    runner: Runner, exact: Path, relative: str, harm: Harm
) -> None:
    path = runner.bundle.folder / relative
    harm(path)
    with pytest.raises(
        DamagedFileError, match=f"{relative}: (was changed since it was opened: it|ends before byte) "
    ) as caught:
        ask(runner, OTHER_SCREEN)
    assert caught.value.remedy == "start again, with the bundle as it was exported"
    shutil.copy(exact / relative, path)
    again = ask(runner, OTHER_SCREEN)
    with Runner(exact) as fresh:
        assert again == ask(fresh, OTHER_SCREEN)


@pytest.mark.parametrize("relative", ["decoder/weights.bin", "embedding/rows.bin"])
def test_a_file_that_changes_while_an_answer_streams_ends_it(exact: Path, copy: Path, relative: str) -> None:
    reseal(copy, lambda tree: tree["generation"].update(eos_token_ids=[]))
    with Runner(copy) as runner:
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            if len(pieces) == 3:
                overwrite(copy / relative)

        with pytest.raises(DamagedFileError, match=relative):
            runner.answer([message("user", "Select OK")], max_new_tokens=200, show=show)
        assert len(pieces) == 3
        shutil.copy(exact / relative, copy / relative)
        text = runner.answer([message("user", "Select OK")], max_new_tokens=24).text
    with Runner(copy) as fresh:
        assert text == fresh.answer([message("user", "Select OK")], max_new_tokens=24).text


@pytest.mark.parametrize("back", [False, True])
def test_a_file_that_is_exchanged_while_it_is_opened_is_not_used(
    copy: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    path, kept = copy / "decoder/weights.bin", copy / "kept"
    original = ort.Decoder

    def exchange(*args: Any, **named: Any) -> ort.Decoder:  # noqa: ANN401 (the session's own)
        path.rename(kept)
        path.write_bytes(os.urandom(kept.stat().st_size))
        opened = original(*args, **named)
        if back:
            kept.replace(path)
        return opened

    with Runner(copy) as runner:
        monkeypatch.setattr(ort, "Decoder", exchange)
        with pytest.raises(DamagedFileError, match=r"decoder/weights\.bin: was changed while it was opened"):
            runner.answer([message("user", "Select OK")])


def test_a_tokenizer_that_changes_as_it_is_read_is_not_used(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = chat.Chat.of_bundle

    def exchange(bundle: Bundle) -> chat.Chat:
        (bundle.folder / "tokenizer/chat_template.jinja").write_text("{{ 'another' }}")
        return original(bundle)

    monkeypatch.setattr(chat.Chat, "of_bundle", exchange)
    with pytest.raises(DamagedFileError, match=r"chat_template\.jinja: was changed since it was opened"):
        Runner(copy)


def rows_of(folder: Path, precision: str) -> tuple[EmbeddingRows, NDArray[np.float32]]:
    """The rows of a small bundle, and what they are."""
    chance = np.random.default_rng(1)
    table = chance.integers(-127, 127, (1024, 32))
    stored, scales = table.astype(DTYPES[precision]).tobytes(), chance.random(1024, np.float32)
    stored += scales.tobytes() if precision == "int8" else b""
    write_bundle(folder)
    (folder / "embedding/rows.bin").write_bytes(stored)

    def fit(tree: dict[str, Any]) -> None:
        tree["model"]["vocabulary"] = 1024
        tree["modules"][0]["precision"] = precision
        tree["modules"][1]["outputs"][0]["shape"] = [1, 1, 1024]

    reseal(folder, fit)
    reseal_files(folder)
    bundle = load_bundle(folder)
    verify_bundle(bundle)
    return EmbeddingRows(bundle), table.astype(np.float32) * (scales[:, None] if precision == "int8" else 1)


@pytest.mark.parametrize("precision", DTYPES)
def test_rows_that_shrink_are_a_line_and_no_signal(tmp_path: Path, precision: str) -> None:
    rows, expected = rows_of(tmp_path, precision)
    np.testing.assert_array_equal(rows.gather([0, 5, 1023]), expected[[0, 5, 1023]])
    np.testing.assert_array_equal(rows.gather([5, 0, 5, 5]), expected[[5, 0, 5, 5]])
    assert rows.gather([]).shape == (0, 32)
    os.truncate(tmp_path / "embedding/rows.bin", 4096)
    with pytest.raises(DamagedFileError, match=r"embedding/rows\.bin: ends before byte \d+"):
        rows.gather([1023])
    os.truncate(tmp_path / "embedding/rows.bin", len(expected) * 200)
    with pytest.raises(DamagedFileError, match=r"embedding/rows\.bin: was changed since it was opened"):
        rows.gather([0])


def test_a_graph_of_another_module_is_a_line(copy: Path) -> None:
    """Whoever can write all of a bundle can seal it again; the runner still asks what it opens."""
    shutil.copy(copy / "vision/model.onnx", copy / "decoder/model.onnx")
    shutil.copy(copy / "vision/weights.bin", copy / "decoder/weights.bin")
    reseal_files(copy)
    line = [sys.executable, str(copy / "run.pyz"), "--prompt", "Select OK"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (6, ""), done.stderr
    assert "decoder/model.onnx: " in done.stderr
    assert done.stderr.count("\n") == 1


def reseal_files(folder: Path) -> None:
    """Make the manifest fit the files."""

    def fit(tree: dict[str, Any]) -> None:
        for relative, file in tree["files"].items():
            data = (folder / relative).read_bytes()
            file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    reseal(folder, fit)
