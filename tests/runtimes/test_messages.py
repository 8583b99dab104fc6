"""The forms in which clients send messages: each means what it says, or is refused in a line."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from edgeglm.errors import BudgetError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.runtimes.text.messages import MAX_TEXT, message, normalize, parts, pictures, texts
from tests.runtimes.pictures import write_png

TEXT = {"type": "text", "text": "Tap OK"}


@pytest.fixture
def screen(tmp_path: Path) -> Path:
    path = tmp_path / "a screen.png"
    write_png(path, 4, 4, 4)
    return path


def user(*content: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def test_pictures_by_path_in_every_form_are_that_path(screen: Path) -> None:
    path = str(screen)
    for part in (
        {"type": "image_url", "image_url": {"url": path, "detail": "high"}},
        {"type": "image_url", "image_url": path},
        {"type": "input_image", "image_url": path},
        {"type": "image_url", "image_url": {"url": screen.as_uri()}},
        {"type": "image", "url": screen.as_uri().replace("file:///", "FILE://localhost/")},
        {"type": "image", "url": path},
        {"type": "image", "image": path},
        {"type": "image", "image": screen},
        {"type": "image", "path": path},
        {"image": path},
        {"type": "image", "image": {"url": path}},
    ):
        assert pictures(normalize(user(part, TEXT))) == [screen], part


def test_pictures_as_data_in_every_form_are_their_bytes(screen: Path) -> None:
    data = screen.read_bytes()
    coded = base64.b64encode(data).decode()
    for part in (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}"}},
        {"type": "image_url", "image_url": f"data:;base64,{coded.rstrip('=')}"},
        {"type": "image_url", "image_url": f"DATA:image/png;name=a.png;BASE64,{coded[:9]}\n {coded[9:]}"},
        {"type": "image_url", "image_url": f"data:image/png;base64,{quote(coded)}"},
        {"type": "image_url", "image_url": f"data:image/png,{quote(data)}"},
        {"type": "image", "url": f"data:image/png;base64,{coded}"},
        {"type": "image", "base64": coded},
        {"type": "image", "base64": f"data:image/png;base64,{coded}"},
        {"type": "image", "image": data},
    ):
        assert pictures(normalize(user(part, TEXT), files=False)) == [data], part


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ("Tap OK", "Tap OK"),
        ([TEXT], "Tap OK"),
        (["Tap OK"], "Tap OK"),
        ([{"text": "Tap OK"}], "Tap OK"),
        ([{"type": "input_text", "text": "Tap OK"}], "Tap OK"),
        (None, ""),
        ([], ""),
    ],
)
def test_texts_in_every_form_are_that_text(content: object, right: str) -> None:
    (said,) = normalize([{"role": "user", "content": content}])
    assert "".join(part["text"] for part in parts(said)) == right


def test_a_message_without_content_keeps_what_else_it_has() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, 2.5, null, true]}'}}
    message = {"tool_calls": [call], "role": "assistant", "reasoning_content": "Hm.", "name": None}
    (said,) = normalize([message])
    assert said == message
    assert [*said] == [*message]  # templates may print them in their order
    assert said["tool_calls"] is not message["tool_calls"]


def test_what_is_normal_stays_as_it_is(screen: Path) -> None:
    once = normalize([message("system", "Be short."), message("user", "Tap", screen), {"role": "assistant"}])
    assert normalize(once) == once
    assert normalize(normalize(user({"image": screen.read_bytes()})), files=False) == user(
        {"type": "image", "image": screen.read_bytes()}
    )


CODED = base64.b64encode(bytes(90_000)).decode()
REFUSED: dict[str, tuple[object, type[EdgeglmError], str]] = {
    "a video": ({"type": "video_url", "video_url": {"url": "a.mp4"}}, UnsupportedError, "part of type video, which"),
    "a video of Hugging Face's": ({"type": "video", "path": "a.mp4"}, UnsupportedError, "part of type video, which"),
    "sound": ({"type": "input_audio", "input_audio": {"data": CODED}}, UnsupportedError, "part of type audio, which"),
    "a file": ({"type": "file", "file": {"file_data": CODED}}, UnsupportedError, "a part of type file, which no"),
    "an unknown type": ({"type": "x" * 500}, UnsupportedError, "a part of type x+…, which no"),
    "no type": ({"a": 1}, UsageError, "a part without a type or a text"),
    "no text": ({"type": "text"}, UsageError, "a part without a type or a text"),
    "a number": (5, UsageError, "a part that is neither"),
    "the network": ({"type": "image_url", "image_url": "https://a.b/c.png"}, UsageError, "is at https://a.b/c.png"),
    "a long URL": ({"type": "image_url", "image_url": "http://a/" + CODED}, UsageError, "is at http://a/AAA+…, and"),
    "another machine": ({"type": "image_url", "image_url": "file://host/a.png"}, UsageError, "is on another machine"),
    "base64 as a URL": ({"type": "image_url", "image_url": {"url": CODED}}, UsageError, "is no path: AAA+…"),
    "no comma": ({"type": "image_url", "image_url": "data:" + CODED}, UsageError, "has no comma"),
    "no base64": ({"type": "image_url", "image_url": "data:;base64,????" + CODED}, UsageError, "is not valid base64"),
    "no URL": ({"type": "image"}, UsageError, "has neither a URL nor a path"),
    "an empty URL": ({"type": "image_url", "image_url": {"url": ""}}, UsageError, "has neither a URL nor a path"),
    "a number as a URL": ({"type": "image_url", "image_url": {"url": 5}}, UsageError, "has neither a URL nor a path"),
    "a NUL": ({"type": "image_url", "image_url": "a\0b"}, UsageError, r"is no path: a\?b"),
    "a broken URL": ({"type": "image_url", "image_url": "file://[a/b"}, UsageError, "is no URL"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_a_short_line(name: str) -> None:
    part, kind, why = REFUSED[name]
    with pytest.raises(kind, match=f"message 1.*{why}") as caught:
        normalize(user(part, TEXT))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hello", "the messages: are no list"),
        ({"role": "user"}, "the messages: are no list"),
        ([5], "message 1: has no role"),
        ([{"content": "a"}], "message 1: has no role"),
        ([{"role": 5, "content": "a"}], "message 1: has no role"),
        ([{"role": "user", "content": 5}], "message 1: has a content that is neither"),
        ([{"role": "user", "content": {"text": "a"}}], "message 1: has a content that is neither"),
        ([{"role": "user", "content": "a", "extra": object()}], "message 1: holds a object, which is nothing"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        normalize(messages)


def test_a_conversation_of_any_size_and_depth_is_refused_in_bounded_time() -> None:
    deep: Any = "a"
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(UsageError, match="message 1: is nested more than"):
        normalize([{"role": "user", "content": "a", "extra": deep}])
    with pytest.raises(BudgetError, match="the messages: have more than"):
        normalize([{"role": "user", "content": "a" * (MAX_TEXT // 2)}] * 3)


def test_a_server_may_forbid_files(screen: Path) -> None:
    for url in (str(screen), screen.as_uri(), "/etc/passwd", screen):
        with pytest.raises(UsageError, match="message 1: its image: is named as a file, and no files are read"):
            normalize(user({"type": "image", "image": url}), files=False)


def test_all_texts_are_found_wherever_they_are() -> None:
    (said,) = normalize([{"role": "user", "content": [TEXT], "tools": [{"function": {"name": "a", "d": ["b", 1]}}]}])
    assert {"Tap OK", "a", "b", "user"} <= set(texts([said]))
