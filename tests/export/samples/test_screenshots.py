"""Labelled screenshots are read with distrust, and their pictures only when they are asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.demo.samples import write_samples
from edgeglm.export.samples.screenshots import read_samples


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_unreadable_set_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "samples.jsonl"
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_samples(file))
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"samples\.jsonl"):
        list(read_samples(file))


def test_a_target_may_have_quotes_in_its_text(tmp_path: Path) -> None:
    file = write_samples("test", 1, tmp_path)
    target = '<think>x</think><answer>do(action="Type", text="我们去"老地方"吃饭吧")</answer>'
    record = {key: value for key, value in json.loads(file.read_text()).items() if key != "box"}
    file.write_text(json.dumps({**record, "target": target}, ensure_ascii=False))
    (sample,) = read_samples(file)
    assert sample.expected.response == target


PICTURE = {"type": "image_url", "image_url": {"url": "test/0000.webp"}}
TEXT = {"type": "text", "text": "Tap OK"}
LAST = "its last message is not the user's, one image, then one text"
TAP = 'do(action="Tap", element=[500,500])'


def user(*content: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(content)}]}


def link(url: str) -> dict[str, object]:
    return user({"type": "image_url", "image_url": {"url": url}}, TEXT)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"messages": []}, "Expected `array` of length >= 1 - at `$.messages`"),
        ({"messages": user(PICTURE, TEXT)["messages"] * 2}, "only its last message may have an image"),  # type: ignore[operator]
        ({"messages": [{"role": "user", "content": "text alone"}]}, LAST),
        ({"messages": [{"role": "assistant", "content": [PICTURE, TEXT]}]}, LAST),
        ({"messages": [{"role": "tool", "content": [TEXT]}]}, "Invalid enum value 'tool'"),
        (user(TEXT), LAST),
        (user(TEXT, PICTURE), LAST),
        (user(PICTURE, TEXT, TEXT), LAST),
        (user({"type": "video_url"}, TEXT), "Invalid value 'video_url'"),
        ({"target": 5}, "Expected `str`, got `int` - at `$.target`"),
        ({"target": None}, "Expected `str`, got `null`"),
        ({"target": "somewhere"}, "its target is not an action"),
        ({"target": 'do(action="Back")', "box": [1, 2, 3, 4]}, "it has a box, and its target Back no point"),
        ({"target": TAP, "box": [1, 2, 3]}, "Expected `array` of length 4"),
        ({"target": TAP, "box": ["left", 2, 3, 4]}, "Expected `float`, got `str`"),
        ({"target": TAP, "box": [5, 2, 3, 4]}, "is not x0, y0, x1, y1 in thousandths"),
        ({"target": TAP, "box": [1, 2, 3, 4000]}, "is not x0, y0, x1, y1 in thousandths"),
        ({"target": TAP, "box": [1, 2, 3, float("nan")]}, "JSON is malformed"),
        ({"bbox": [1, 2, 3, 4]}, "Object contains unknown field `bbox`"),
        (link("nowhere.webp"), "its image 'nowhere.webp' is not there"),
        (link("../test.jsonl"), "its image '../test.jsonl' is not in the folder of the file"),
        (link("/etc/hostname"), "is not in the folder of the file"),
        (link("https://example.org/screen.webp"), "is not there"),
        (link("bad\0name"), "null"),
    ],
    ids=str,
)
def test_a_line_that_is_no_sample_is_named_with_the_reason(tmp_path: Path, change: dict[str, object], why: str) -> None:
    file = write_samples("test", 2, tmp_path)
    good, bad = file.read_text().splitlines()
    record = {key: value for key, value in json.loads(bad).items() if key != "box"}
    file.write_text("\n".join([good, json.dumps({**record, **change})]))
    with pytest.raises(UsageError, match=rf"test\.jsonl:2: is not a sample: .*{re.escape(why)}"):
        list(read_samples(file))


def test_messages_before_the_screen_are_read(tmp_path: Path) -> None:
    file = write_samples("test", 1, tmp_path)
    record = json.loads(file.read_text())
    before = [
        {"role": "system", "content": "You work a phone."},
        {"role": "user", "content": [{"type": "text", "text": "Open Maps"}]},
        {"role": "assistant", "content": TAP},
    ]
    file.write_text(json.dumps({**record, "messages": [*before, *record["messages"]]}))
    (sample,) = read_samples(file)
    assert sample.before == (("system", "You work a phone."), ("user", "Open Maps"), ("assistant", TAP))
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant", "user"]
    assert sample.messages[-1]["content"] == [{"type": "image"}, {"type": "text", "text": sample.prompt}]


@pytest.mark.parametrize("line", ["", "{", "[]", '{"target": "x"}', '{"messages": [], "target"'])
def test_a_line_that_is_not_the_right_json_is_named(tmp_path: Path, line: str) -> None:
    file = write_samples("test", 1, tmp_path)
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(UsageError, match=r"test\.jsonl:2: is not a sample: .*; write it as docs/validate\.md says"):
        list(read_samples(file))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    file = write_samples("test", 1, inside)
    (inside / "test/0000.webp").rename(tmp_path / "outside.webp")
    (inside / "test/0000.webp").symlink_to(tmp_path / "outside.webp")
    with pytest.raises(UsageError, match="is not in the folder of the file"):
        list(read_samples(file))


def test_a_damaged_image_names_its_line(tmp_path: Path) -> None:
    file = write_samples("test", 1, tmp_path)
    image = tmp_path / "test" / "0000.webp"
    for content in (image.read_bytes()[:200], b"", b"<svg/>"):
        image.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"test\.jsonl:1: its image cannot be read"):
            list(read_samples(file))


def test_pictures_are_not_held_in_memory(tmp_path: Path) -> None:
    samples = list(read_samples(write_samples("test", 2, tmp_path)))
    assert not any(isinstance(sample.screen, Image.Image) for sample in samples)
    first, again = samples[0].image, samples[0].image
    assert first is not again
    assert first.tobytes() == again.tobytes()
