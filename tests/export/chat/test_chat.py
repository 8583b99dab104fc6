"""Before work starts, prompts are made of the checkpoint's own files, and compared with transformers'."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import edgeglm.export.chat.compare as comparing
from edgeglm.errors import UnsupportedError
from edgeglm.export.chat.compare import compare
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.sidecars import Sidecars
from tests.cli.commands import check_failure, run
from tests.export.tiny import SHAPES, save
from tests.runtimes.demo import SCREEN

NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        shutil.copy(DEMO / name, tmp_path)
    return tmp_path


def chat(folder: Path) -> Chat:
    return Chat(Sidecars(folder), None, sees=True)


def test_the_demos_prompts_are_transformers_own(folder: Path) -> None:
    assert compare(chat(folder), sees=True) is None


def test_what_transformers_said_is_kept_and_asked_again_where_it_is_damaged(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert compare(chat(folder), sees=True) is None
    (kept,) = (cache / "edgeglm" / "chats").iterdir()
    data = bytearray(kept.read_bytes())
    with monkeypatch.context() as without:
        without.setattr(comparing, "_ask", lambda request: pytest.fail("asked again"))
        assert compare(chat(folder), sees=True) is None
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert compare(chat(folder), sees=True) is None
    assert kept.read_bytes() != bytes(data)


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "config.json"))
    assert compare(chat(folder), sees=True) is None


def test_a_template_of_the_hour_is_compared_at_one_hour(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}{{ messages | length }}")
    assert compare(chat(folder), sees=True) is None


def test_a_prompt_that_differs_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ range(99999) | random }}")
    with pytest.raises(UnsupportedError, match=r"a question is rendered as '\d+.*where transformers has '"):
        compare(chat(folder), sees=True)


def test_tokens_that_differ_are_refused(folder: Path) -> None:
    ours = chat(folder)
    ours.tokenizer.add_tokens(["Go on"])
    with pytest.raises(UnsupportedError, match=r"tokenizer.json: turns with a system prompt has other tokens than in"):
        compare(ours, sees=True)


def test_a_tokenizer_that_transformers_does_not_load_is_a_note(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "a"}}')
    said = compare(chat(folder), sees=False)
    assert said is not None
    assert said.startswith("transformers does not load the tokenizer, so that prompts are not compared: TypeError")


def test_a_template_without_a_place_for_pictures_is_a_note(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{% endfor %}")
    status, out, err = run(capsys, "plan", str(tmp_path / "model"), "--target", "cpu")
    assert (status, err) == (0, "")
    assert "chat_template.jinja: a prompt has 0 places for one image, and so takes none" in out
    assert "chat_template.jinja: a prompt leaves out what the user says, and so every answer is the same" in out


@pytest.mark.parametrize("command", ["plan", "export"])
@pytest.mark.parametrize(
    ("name", "data", "status", "why"),
    [
        ("tokenizer.json", b"{}", 6, "tokenizer.json: is not a tokenizer"),
        ("tokenizer.json", b"garbage", 6, "tokenizer.json: is not a tokenizer"),
        ("chat_template.jinja", b"{% if %}", 3, "chat_template.jinja: is no chat template"),
        ("chat_template.jinja", b"\xff\xfe", 6, "chat_template.jinja: is not UTF-8"),
        ("chat_template.jinja", b"{{ 'a' * 10**10 }}", 3, "chat_template.jinja: cannot be rendered within"),
        ("chat_template.jinja", b"{{ raise_exception('no') }}", 3, "chat_template.jinja: refuses the conversation: no"),
        ("chat_template.jinja", b"", 3, "chat_template.jinja: renders nothing"),
    ],
)
def test_plan_and_export_refuse_what_no_device_could_answer_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, name: str, data: bytes, status: int, why: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    (model / name).write_bytes(data)
    more = ["-o", str(tmp_path / "bundle")] if command == "export" else []
    check_failure(run(capsys, command, str(model), "--target", "cpu", *more), status, why)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("bundle")]


def test_a_tokenizer_of_more_words_than_the_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(SHAPES["glm"], tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, tmp_path / "model")
    capsys.readouterr()
    result = run(capsys, "plan", tmp_path / "model", "--target", "cpu")
    check_failure(result, 3, r"tokenizer\.json: makes token \d+ of a prompt, and the model has 256, .*; take both")


def test_a_template_for_texts_alone_is_a_note_on_a_model_that_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(DEMO, tmp_path / "model")
    template = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
    (model / "chat_template.jinja").write_text(template)
    status, _, err = run(capsys, "export", model, "--target", "cpu", "-o", tmp_path / "bundle")
    assert status == 0
    assert "chat_template.jinja: a prompt has 0 places for one image, and so takes none\n" in err
    assert "leaves out what the user says" not in err
    asked = ("run", tmp_path / "bundle", "--image", SCREEN, "--prompt", "Select OK", "--max-new-tokens", "4")
    check_failure(run(capsys, *asked), 3, "the prompt: has 0 places for 1 images; give each message as many images as")
