"""Read a conversation as the decoder takes it: tokens with the pictures that some of them stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.manifest import Model, Vision
from edgeglm.runtimes.core.assembly import Assembly, assemble
from edgeglm.runtimes.inputs.image import Source, hash_picture, merged_grid, nearest_shape, picture_size
from edgeglm.runtimes.inputs.positions import Grid
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import Message, normalize, parts, pictures, texts

RESULTS = ("tool", "observation")  # roles of what a tool returned
Key = int | bytes  # a token, or the hash of the picture that it is a piece of
FeaturesKey = tuple[bytes, Grid]  # the hash of a picture, and the grid that it is brought to


@dataclass(frozen=True)
class Picture:
    """A picture, the shape that it is brought to, and the hash of what is seen of it."""

    source: Source
    vision: Vision
    digest: bytes

    @property
    def key(self) -> FeaturesKey:
        """The key of its features."""
        return self.digest, self.vision.grid


@dataclass(frozen=True)
class Prompt(Assembly):
    """A prompt with its pictures, one a span, and the number of leading tokens that other prompts begin with too."""

    pictures: list[Picture] = field(default_factory=list)
    kept: int = 0

    @classmethod
    def of_text(cls, tokens: Sequence[int], model: Model) -> Prompt:
        """Assemble tokens that all stand for text."""
        found = assemble(tokens, [False] * len(tokens), [], mrope=bool(model.rope.mrope_sections))
        return cls(found.tokens, found.spans, found.positions)

    def unseen(self, known: int) -> list[Picture]:
        """Return the pictures of which the first `known` tokens lack a piece."""
        return [picture for picture, (_, stop) in zip(self.pictures, self.spans, strict=True) if stop > known]

    def keys(self) -> list[Key]:
        """Return what a decoder's state depends on, token by token: equal keys have equal states."""
        keys: list[Key] = list(self.tokens)
        for picture, (start, stop) in zip(self.pictures, self.spans, strict=True):
            keys[start:stop] = [picture.digest] * (stop - start)
        return keys


def read_prompt(
    chat: Chat,
    model: Model,
    messages: Sequence[Message],
    shapes: Sequence[Vision] = (),
    *,
    tools: Sequence[Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    digest: Callable[[Source], bytes] = hash_picture,
) -> Prompt:
    """Encode a conversation that is to be answered, with its pictures.

    Args:
        chat: Of the model.
        model: Of the bundle.
        messages: In any form that `edgeglm.runtimes.text.messages.normalize` knows.
        shapes: What a picture may be brought to; the model's own shape if there is none.
        tools: As the chat template takes them.
        variables: Further names for the chat template, such as ``enable_thinking``.
        digest: Returns the hash of what is seen of a picture.

    Raises:
        UsageError: A picture cannot be read, or nothing is asked.
        UnsupportedError: The model sees no pictures.
    """
    said = normalize(messages)
    if not said or not _has_content(said[-1]):
        raise UsageError("the prompt", "is empty", "say what to do")
    words = texts([*said])
    if not all(map(_is_unicode, words)):
        raise UsageError("the prompt", "is not UTF-8", "check the terminal's locale")
    sources, vision = pictures(said), model.vision
    if sources and not vision:
        raise UnsupportedError(model.name, "takes no images", "leave the image out")
    if any(chat.image_token and chat.image_token in text for text in words):
        raise UsageError("the prompt", "holds the image token", "take it out of the text")
    visions = [_shape(source, shapes or [vision]) for source in sources] if vision else []
    tokens = chat.encode(said, tools, [vision.grid for vision in visions], variables)
    _check_tokens(chat, model, tokens)
    is_image = [bool(vision) and token == vision.image_token_id for token in tokens]  # type: ignore[union-attr]
    grids = [merged_grid(vision) for vision in visions]
    try:
        found = assemble(tokens, is_image, grids, mrope=bool(model.rope.mrope_sections))
    except ValueError as error:
        remedy = "give each message as many images as its chat template takes"
        raise UnsupportedError("the prompt", f"has {error}", remedy) from error
    shown = zip(sources, visions, strict=True)
    seen = [Picture(source, shape, digest(source)) for source, shape in shown]
    return Prompt(found.tokens, found.spans, found.positions, pictures=seen)


def text_prompt(chat: Chat, model: Model, text: str | Sequence[int]) -> Prompt:
    """Return the prompt that a text is without a chat template, or that tokens are. Raises as `read_prompt`."""
    tokens = chat.bounded.encode(text, add_special_tokens=True) if isinstance(text, str) else [*text]
    _check_tokens(chat, model, tokens)
    if not tokens or (model.vision and model.vision.image_token_id in tokens):
        raise UsageError("the prompt", "is empty or holds the image token", "give a text")
    return Prompt.of_text(tokens, model)


def _check_tokens(chat: Chat, model: Model, tokens: Sequence[int]) -> None:
    if tokens and not 0 <= min(tokens) <= max(tokens) < model.vocabulary:
        why = f"gives token {max(tokens)}, and the model knows {model.vocabulary}"
        raise UnsupportedError(chat.bounded.file, why, "export a checkpoint whose files belong together")


def shared_length(known: Sequence[Key], wanted: Sequence[Key]) -> int:
    """Return how many keys both begin with; one of those wanted is always left, to compute logits from."""
    pairs = zip(known, wanted[:-1], strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(known), len(wanted) - 1))


def _shape(source: Source, shapes: Sequence[Vision]) -> Vision:
    return shapes[0] if len(shapes) == 1 else nearest_shape(*picture_size(source), shapes)


def _has_content(last: Message) -> bool:
    """Return whether there is something to answer: a text, images and nothing else, or a result, even an empty one."""
    said = parts(last)
    speaks = any(part.get("text", "").strip() for part in said) or all(part["type"] == "image" for part in said)
    return speaks or last["role"] in RESULTS


def _is_unicode(text: str) -> bool:
    """Return whether it has no byte of the command line that could not be decoded."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
