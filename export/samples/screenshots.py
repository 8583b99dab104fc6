"""Questions about screens with known answers, read from a JSONL file with distrust; docs/validate.md has the format."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from PIL import Image

from edgeglm.actions import parse_action
from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.files import opened
from edgeglm.runtimes.inputs.image import open_picture, to_rgb

FORMAT = "docs/validate.md"
JSONL = "give a JSONL file of samples"
MAX_BYTES = 64 << 20

Units = tuple[float, float, float, float]  # x0, y0, x1, y1 in thousandths of the screen


@dataclass(frozen=True)
class Expected:
    """The right answer: the whole response, and for a tap the target's box in thousandths of the screen."""

    response: str
    box: Units | None = None


@dataclass(frozen=True)
class Sample:
    """A screenshot, as pixels or as a file, the user's text and the right answer.

    `before` are role and text of the messages before it: a system prompt, earlier turns.
    """

    screen: Image.Image | Path
    prompt: str
    expected: Expected
    before: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates take it: all text but the picture of the last message."""
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.prompt}]}
        return [*({"role": role, "content": text} for role, text in self.before), question]

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The conversation as the runner takes it, with the picture itself."""
        *before, question = self.messages
        picture = self.screen if isinstance(self.screen, Path) else _png(self.screen)
        return [*before, {**question, "content": [{"type": "image", "image": picture}, *question["content"][1:]]}]

    @property
    def image(self) -> Image.Image:
        """The pixels, in RGB as the runner reads them; of a file anew each time: a thousand are not in memory."""
        if isinstance(self.screen, Image.Image):
            return self.screen
        return to_rgb(open_picture(self.screen))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def read_samples(file: Path, limit: int | None = None) -> Iterator[Sample]:
    """Yield the first `limit` samples of a JSONL file; a picture is opened when it is asked for.

    Raises:
        UsageError: The file cannot be read or holds no sample, or a line is not a sample.
        DamagedFileError: What a line calls its picture is none.
    """
    with opened(file, JSONL, MAX_BYTES) as stream:
        lines = stream.readlines()
    if not lines:
        raise UsageError(file, "holds no samples", JSONL)
    for number, line in enumerate(islice(lines, limit), start=1):
        where = f"{file}:{number}"
        try:
            sample = _from_record(msgspec.json.decode(line, type=_Record), file.parent)
        except (msgspec.DecodeError, ValueError) as error:
            raise UsageError(where, f"is not a sample: {error}", f"write it as {FORMAT} says") from error
        try:
            _ = sample.image
        except UsageError as error:
            raise DamagedFileError(where, f"its image cannot be read: it {error.why}", error.remedy) from error
        yield sample


class _Url(Struct, forbid_unknown_fields=True):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class _Picture(Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: _Url


class _Text(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class _Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str | list[_Picture | _Text]


class _Record(Struct, forbid_unknown_fields=True):
    """A line; JSON has no NaN, so a box is of numbers."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    target: str
    box: Units | None = None


def _from_record(record: _Record, folder: Path) -> Sample:
    *before, last = record.messages
    match last:
        case _Message(role="user", content=[_Picture(image_url=_Url(url=url)), _Text(text=prompt)]):
            pass
        case _:
            raise ValueError("its last message is not the user's, one image, then one text")
    action = parse_action(record.target)
    if action is None:
        raise ValueError("its target is not an action")
    if record.box:
        x0, y0, x1, y1 = record.box
        if not (0 <= x0 <= x1 <= 1000 and 0 <= y0 <= y1 <= 1000):
            raise ValueError(f"its box {list(record.box)} is not x0, y0, x1, y1 in thousandths of the screen")
        if action.point is None:
            raise ValueError(f"it has a box, and its target {action.type} no point")
    earlier = tuple((message.role, _text(message)) for message in before)
    return Sample(_inside(folder, url), prompt, Expected(record.target, record.box), earlier)


def _text(message: _Message) -> str:
    match message.content:
        case str(text) | [_Text(text=text)]:
            return text
    raise ValueError("only its last message may have an image, and each before it is one text")


def _inside(folder: Path, url: str) -> Path:
    """Return a picture's path, which may not lead out of the folder of the file that names it."""
    path, root = Path(os.path.realpath(folder / url)), Path(os.path.realpath(folder))
    if not path.is_relative_to(root):
        raise ValueError(f"its image {url!r} is not in the folder of the file")
    if not os.path.isfile(path):  # of a name that no file can have too
        raise ValueError(f"its image {url!r} is not there")
    return path
