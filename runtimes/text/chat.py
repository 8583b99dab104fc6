"""Encode a conversation and decode its answer, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgeglm.bundle import Bundle
from edgeglm.errors import EdgeglmError, UnsupportedError
from edgeglm.manifest import Vision
from edgeglm.runtimes.inputs.positions import Grid
from edgeglm.runtimes.text.messages import Message, message, parts
from edgeglm.runtimes.text.sidecars import Sidecars
from edgeglm.runtimes.text.templates import FILE, LEGACY, PROCESSOR, named_templates, read_templates
from edgeglm.runtimes.text.tokenizer import REMEDY, BoundedTokenizer

# What programs that ask a `Runner` import from here, `message` among it.
__all__ = ["Chat", "Message", "TextStream", "message"]

PROBE = "edgeglm"
FOLDER = "tokenizer/"  # of a bundle
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", FILE, LEGACY, PROCESSOR)


class Chat:
    """Renders normalized messages (`edgeglm.runtimes.text.messages`) for one model, and streams its answers as text.

    A model without a chat template, such as a base model, completes the text of a single message.

    Args:
        sidecars: Of the bundle, or of a checkpoint.
        vision: The picture that the model sees, if it sees any.
        sees: Whether it sees any, where that alone is known.

    Raises:
        UnsupportedError: There is no tokenizer, or the chat template cannot be one.
        DamagedFileError: One of the files cannot be read.
    """

    def __init__(self, sidecars: Sidecars, vision: Vision | None, *, sees: bool = False) -> None:
        self.sidecars, self.vision = sidecars, vision
        self.bounded = BoundedTokenizer(sidecars)
        self.tokenizer = self.bounded.library
        self.template = read_templates(sidecars, sees=sees or vision is not None)
        self._knows: dict[str, bool] = {}

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Chat:
        """Return the chat of a bundle, from the files that its manifest vouches for. Raises as the class."""
        names = frozenset(name.removeprefix(FOLDER) for name in bundle.manifest.files if name.startswith(FOLDER))
        return cls(Sidecars(bundle.folder / FOLDER, names), bundle.manifest.model.vision)

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        grids: Sequence[Grid] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens of a conversation that the model is to answer; a picture is one for each merged patch.

        Args:
            messages: Normalized.
            tools: As the template takes them.
            grids: Rows and columns of patches of each picture, in their order; the model's own if None.
            variables: Further names for the template.

        Raises:
            UnsupportedError: The template refuses the conversation, or there is none and it is more than a text.
            DamagedFileError, BudgetError: The tokenizer fails at its text, or it is too long for any prompt.
        """
        if self.template is None:
            return self.bounded.encode(self._text(messages), add_special_tokens=True)
        text = self.render(messages, tools, variables)
        return self.bounded.encode(self._expanded(text, self.vision, grids) if self.vision else text)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation, in which a picture is one token. Raises as `encode`."""
        if self.template is None:
            raise self._missing()
        return self.template.render([self._for_template(message) for message in messages], tools, variables)

    def _expanded(self, text: str, vision: Vision, grids: Sequence[Grid] | None) -> str:
        """Repeat the token of each picture; as many as the template did not make of the pictures stay single."""
        token = str(self.image_token)
        first, *rest = text.split(token)
        grids = [vision.grid] * len(rest) if grids is None else grids
        if len(grids) != len(rest):
            return text
        counts = [rows * columns // vision.merge_size**2 for rows, columns in grids]
        return first + "".join(token * count + piece for count, piece in zip(counts, rest, strict=True))

    @property
    def image_token(self) -> str | None:
        """The token that stands for a picture, if the model sees any."""
        return self.tokenizer.id_to_token(self.vision.image_token_id) if self.vision else None

    def files(self) -> list[Path]:
        """Return all files that speak of prompts."""
        folder = self.sidecars.folder
        return [path for name in (*FILES, *named_templates(folder)) if (path := folder / name).is_file()]

    def stream(self) -> TextStream:
        """Begin a new answer's text."""
        return TextStream(self.tokenizer)

    def _for_template(self, each: Message) -> Message:
        """Return the message as templates know it: without what only this side knows of its pictures."""
        content = each.get("content")
        if content is None or isinstance(content, str):
            return each
        if all(part["type"] == "text" for part in content) and not self._knows_parts(str(each["role"])):
            return {**each, "content": "\n".join(part["text"] for part in content)}
        return {**each, "content": [part if part["type"] == "text" else {"type": "image"} for part in content]}

    def _knows_parts(self, role: str) -> bool:
        """Return whether the template takes a list for a content of this role, and does not print it as Python does."""
        if role not in self._knows and self.template is not None:
            try:
                text = self.template.render([{"role": role, "content": [{"type": "text", "text": PROBE}]}])
            except EdgeglmError:
                text = ""
            self._knows[role] = PROBE in text and "'type'" not in text
        return self._knows[role]

    def _text(self, messages: Sequence[Message]) -> str:
        match [part for message in messages for part in parts(message)]:
            case [{"type": "text", "text": str(text)}]:
                return text
        raise self._missing()

    def _missing(self) -> UnsupportedError:
        return UnsupportedError(
            self.sidecars.folder, "has no chat template, and so the model takes one text alone", REMEDY
        )


class TextStream:
    """Holds the text of an answer, token by token; a character that takes several tokens comes when it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.decoder = tokenizer, DecodeStream(skip_special_tokens=True)
        self.tokens: list[int] = []
        self.text = ""

    def add(self, token: int) -> str:
        """Return what the token adds to the text."""
        self.tokens.append(token)
        piece = self.decoder.step(self.tokenizer, token) or ""
        self.text += piece
        return piece

    def finish(self) -> str:
        """Return what the end of the answer adds: the sign for a character that was cut off, as transformers decodes.

        It stands in the text from then on, as a place where something is missing.
        """
        whole = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        piece = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += piece
        return piece
