"""From a user's words to tokens and back: the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.manifest import Vision

REMEDY = "export a checkpoint that has one"
Message = Mapping[str, Any]


def message(role: str, text: str, image: Path | None = None) -> Message:
    """A message in OpenAI's form, with a picture's path or without."""
    if image is None:
        return {"role": role, "content": text}
    picture = {"type": "image_url", "image_url": {"url": str(image)}}
    return {"role": role, "content": [picture, {"type": "text", "text": text}]}


def pictures(messages: Sequence[Message]) -> list[Path]:
    """The paths of all pictures, in their order."""
    parts = [part for each in messages if not isinstance(each["content"], str) for part in each["content"]]
    return [Path(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]


class Chat:
    """Renders messages in OpenAI form for one model, and streams its answers as text.

    Args:
        folder: The bundle's ``tokenizer/``, or a checkpoint.
        vision: The picture that the model sees, if it sees any.

    Raises:
        UnsupportedError: The bundle has no tokenizer or no chat template.
        DamagedFileError: One of them cannot be read.
    """

    def __init__(self, folder: Path, vision: Vision | None) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UnsupportedError(file, "is not there, and so the model takes no text", REMEDY)
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library has no narrower one
            raise DamagedFileError(file, f"is not a tokenizer: {error}", "export the bundle again") from error
        self.vision = vision
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            self.template = environment.from_string(_template(folder))
        except TemplateError as error:
            raise DamagedFileError(folder, f"its chat template is wrong: {error}", "export the bundle again") from error

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation that the model is to answer; a picture is a token for each merged patch."""
        text = self.template.render(messages=[_for_template(each) for each in messages], add_generation_prompt=True)
        if self.vision:
            rows, columns = self.vision.grid
            token = str(self.tokenizer.id_to_token(self.vision.image_token_id))
            text = text.replace(token, token * (rows * columns // self.vision.merge_size**2))
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def stream(self) -> TextStream:
        """A new answer's text."""
        return TextStream(self.tokenizer)


class TextStream:
    """The text of an answer, token by token; a character that takes several tokens comes when it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.decoder = tokenizer, DecodeStream(skip_special_tokens=True)
        self.text = ""

    def add(self, token: int) -> str:
        """What the token adds to the text."""
        piece = self.decoder.step(self.tokenizer, token) or ""
        self.text += piece
        return piece


def _for_template(each: Message) -> Message:
    """The message as checkpoints' templates know it: a picture is a part of type ``image``."""
    if isinstance(each["content"], str):
        return each
    parts = [{"type": "image"} if part["type"] == "image_url" else part for part in each["content"]]
    return {**each, "content": parts}


def _template(folder: Path) -> str:
    """The template's text, from a file of its own or from the tokenizer's settings."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    if not isinstance(template, str):
        raise UnsupportedError(folder, "has no chat template", REMEDY)
    return template
