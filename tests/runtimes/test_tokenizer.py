"""A checkpoint's tokenizer: as transformers takes it, in bounded time and memory, and a panic is a line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers import AutoTokenizer

import edgeglm.runtimes.text.tokenizer as module
from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import message
from edgeglm.runtimes.text.sidecars import Sidecars
from edgeglm.runtimes.text.template_prices import MAX_TEXT
from edgeglm.runtimes.text.tokenizer import BoundedTokenizer

Tree = dict[str, Any]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., BoundedTokenizer]:
    def change(**members: object) -> BoundedTokenizer:
        tree = json.loads((DEMO / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(tree | members))
        return BoundedTokenizer(Sidecars(tmp_path))

    return change


def split(pattern: str) -> Tree:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replacement(content: str) -> Tree:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


def test_a_panic_is_a_line_and_the_next_text_is_encoded(make: Callable[..., BoundedTokenizer]) -> None:
    tokenizer = make(pre_tokenizer=split("(a+)+$"))
    with pytest.raises(DamagedFileError, match=r"tokenizer.json: is not a tokenizer that works: Onig"):
        tokenizer.encode("a" * 40 + "!")
    assert tokenizer.encode("b")


def test_a_search_without_end_is_ended_and_said(
    make: Callable[..., BoundedTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    # Each search ends within Onig's own limit, but there is one from every letter on.
    tokenizer = make(pre_tokenizer=split("(a+)+b"))
    with pytest.raises(UnsupportedError, match=r"tokenizer.json: takes more than 0.2 seconds for a text of 2850 "):
        tokenizer.encode(("a" * 18 + " ") * 150)
    with pytest.raises(UnsupportedError, match="takes more than"):  # not beside the first, which goes on
        tokenizer.encode("b")


@pytest.mark.parametrize(
    "padding",
    [
        {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None},
        {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 10**9},
    ],
)
def test_padding_and_truncation_are_off_as_in_transformers(
    make: Callable[..., BoundedTokenizer], padding: Tree, tmp_path: Path
) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tokenizer = make(padding=padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}, truncation=truncation)
    shutil.copy(DEMO / "config.json", tmp_path)
    text = "Select OK, 打开设置"
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(DEMO)(text)["input_ids"]


@pytest.mark.parametrize(
    "members",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [replacement("aa")] * 64}},
        {"normalizer": replacement("a" * 1000)},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("x")]}, "normalizer": replacement("aa" * 50)},
        {"decoder": {"type": "Sequence", "decoders": [replacement("aa")] * 64}},
    ],
)
def test_a_tokenizer_that_makes_much_of_little_is_refused(make: Callable[..., BoundedTokenizer], members: Tree) -> None:
    with pytest.raises(DamagedFileError, match="puts more than 64 times as much for what it replaces"):
        make(**members)


@pytest.mark.parametrize(
    "data", [b"{}", b"garbage", b"[]", b"", b"\xff", b"[" * 100_000, b'{"model": {"type": "BPE"}}']
)
def test_what_is_no_tokenizer_is_a_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"tokenizer.json: is not a tokenizer.*; correct tokenizer.json of the"):
        BoundedTokenizer(Sidecars(tmp_path))


@pytest.mark.parametrize("added", [5, {"x": {}}, {"1": 5}, {"1": {"content": 5}}])
def test_added_tokens_that_are_none_are_a_line(
    make: Callable[..., BoundedTokenizer], tmp_path: Path, added: object
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(DamagedFileError):
        make()


def test_a_text_that_no_prompt_could_hold_is_not_encoded(make: Callable[..., BoundedTokenizer]) -> None:
    with pytest.raises(BudgetError, match="the prompt: has 4194305 characters, and"):
        make().encode("a" * (MAX_TEXT + 1))


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(DamagedFileError, match="is not a regular file"):
        BoundedTokenizer(Sidecars(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedFileError, match="too many for such a file"):
        BoundedTokenizer(Sidecars(tmp_path))


def test_a_base_model_completes_a_text_and_no_more(make: Callable[..., BoundedTokenizer], tmp_path: Path) -> None:
    text = make().encode("Once upon", add_special_tokens=True)
    chat = Chat(Sidecars(tmp_path), None)
    assert chat.encode([message("user", "Once upon")]) == text
    with pytest.raises(UnsupportedError, match="has no chat template, and so the model takes one text alone"):
        chat.encode([message("system", "Be short."), message("user", "Once upon")])


def test_a_template_that_takes_texts_alone_gets_the_text_of_a_list(tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    parts = "{% for p in m.content %}{{ p.text }}|{% endfor %}"
    knows = "m.role == 'user' and m.content is not string"
    template = f"{{% if {knows} %}}{parts}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
    template = f"{{% for m in messages %}}<{{{{ m.role }}}}>{template}{{% endfor %}}"
    (tmp_path / "chat_template.jinja").write_text(template)
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rendered = Chat(Sidecars(tmp_path), None).render(
        [{"role": role, "content": content} for role in ("system", "user")]
    )
    assert rendered == "<system>a\nb<user>a|b|"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pointer_is_called_one(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "copy"))
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DamagedFileError, match=f"{name}: is a Git LFS pointer, not the file itself; run git lfs pull"):
        Chat(Sidecars(folder), None, sees=True)


def streamed(chat: Chat, tokens: list[int]) -> tuple[list[str], str]:
    stream = chat.stream()
    pieces = [stream.add(token) for token in tokens]
    end = stream.finish()
    assert stream.text == "".join(pieces) + end
    return pieces, stream.text


def test_characters_come_whole_and_the_text_is_that_of_transformers() -> None:
    chat, theirs = Chat(Sidecars(DEMO), None), AutoTokenizer.from_pretrained(DEMO)
    tokens = chat.bounded.encode("Open 打开设置 é 🙂🏽!")
    assert len(tokens) > 12
    for count in range(len(tokens) + 1):
        pieces, text = streamed(chat, tokens[:count])
        assert text == theirs.decode(tokens[:count], skip_special_tokens=True)
        assert "\ufffd" not in "".join(pieces)
    assert any(streamed(chat, tokens[:count])[1].endswith("\ufffd") for count in range(len(tokens)))


def test_bytes_that_are_no_text_are_shown_as_in_transformers() -> None:
    chat, theirs = Chat(Sidecars(DEMO), None), AutoTokenizer.from_pretrained(DEMO)
    chance = random.Random(1)
    for _ in range(300):
        tokens = [chance.randrange(chat.tokenizer.get_vocab_size()) for _ in range(chance.randrange(12))]
        pieces, text = streamed(chat, tokens)
        assert text == theirs.decode(tokens, skip_special_tokens=True)
        assert not "".join(pieces).endswith("\ufffd")
