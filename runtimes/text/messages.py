"""Normalize the messages that clients send: OpenAI's forms, Hugging Face's, and those in between."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from edgeglm.errors import BudgetError, UnsupportedError, UsageError
from edgeglm.runtimes.inputs.image import MAX_BYTES
from edgeglm.units import format_size

Message = Mapping[str, Any]
MAX_TEXT = 4 << 20  # characters of all messages
MAX_DEPTH = 64  # of what a message holds
MAX_SHOWN = 80  # characters of a name that an error repeats
TEXTS = ("text", "input_text", "output_text")
PICTURES = ("image", "image_url", "input_image")
# Where a part of a message has its picture, in the order of transformers' processors.
PLACES = ("image", "image_url", "url", "path", "base64")
URL_SAFE = str.maketrans("-_", "+/")  # base64's other letters
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
TAKEN = "give a path, a file URL or a data URL of a WebP, PNG or JPEG"
SENT = "send a data URL of a WebP, PNG or JPEG"


def message(role: str, text: str, image: Path | None = None) -> Message:
    """Make a message in OpenAI's form, with a picture's path or without."""
    if image is None:
        return {"role": role, "content": text}
    picture = {"type": "image_url", "image_url": {"url": str(image)}}
    return {"role": role, "content": [picture, {"type": "text", "text": text}]}


def normalize(messages: Sequence[Message], *, files: bool = True) -> list[dict[str, Any]]:
    """Bring a conversation into one form; one that has it already stays as it is.

    A message's content is a text, or a list of ``{"type": "text", "text": str}`` and ``{"type": "image", "image": …}``
    with a path or the picture's bytes. What else a message has, such as ``tool_calls`` or ``tools``, stays.

    Args:
        messages: In OpenAI's form, in Hugging Face's, or between them.
        files: Whether a message may name files of this machine. A server says no.

    Raises:
        UsageError: A message has no such form, or its picture cannot be had.
        UnsupportedError: A message holds what no model here takes, such as a video.
        BudgetError: The conversation is longer than any prompt.
    """
    room = [MAX_TEXT]
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError("the messages", "are no list", "give a list of messages")
    try:
        return [
            _normalized(f"message {number}", message, room, files) for number, message in enumerate(messages, start=1)
        ]
    except UsageError as error:
        remedy = error.remedy if files else error.remedy.replace(TAKEN, SENT)
        raise UsageError(error.what, error.why, remedy) from error


def pictures(messages: Sequence[Message]) -> list[Path | bytes]:
    """Return the pictures of normalized messages, in their order."""
    return [part["image"] for message in messages for part in parts(message) if part["type"] == "image"]


def parts(each: Message) -> list[Mapping[str, Any]]:
    """Return the parts of a normalized message's content."""
    content = each.get("content") or ""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def texts(value: object) -> list[str]:
    """Return all texts of a normalized message or of what it holds."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in (key, *texts(item))]
    return [text for item in value for text in texts(item)] if isinstance(value, list) else []


def _normalized(where: str, each: object, room: list[int], files: bool) -> dict[str, Any]:
    if not isinstance(each, Mapping) or not isinstance(each.get("role"), str):
        raise UsageError(where, "has no role", 'write it as {"role": "user", "content": "…"}')
    content = each.get("content")
    if isinstance(content, (list, tuple)):
        content = [_part(where, part, room, files) for part in content]
    elif content is not None and not isinstance(content, str):
        raise UsageError(where, "has a content that is neither a text nor a list", "write it as a text")
    else:
        content = _plain(where, content, room)
    others = {str(key): _plain(where, value, room) for key, value in each.items() if key != "content"}
    # In their order, which a template may print.
    return {str(key): content if key == "content" else others[str(key)] for key in each}


def _part(where: str, part: object, room: list[int], files: bool) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": _plain(where, part, room)}
    if not isinstance(part, Mapping):
        raise UsageError(where, "has a part that is neither a text nor an object", "write it in OpenAI's form")
    kind = part.get("type") or next((name for name in ("text", *PICTURES) if name in part), None)
    if kind in TEXTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": _plain(where, part["text"], room)}
    if kind in PICTURES:
        return {"type": "image", "image": _picture(where, part, files)}
    if not isinstance(kind, str) or kind in TEXTS:
        raise UsageError(where, "has a part without a type or a text", "write it in OpenAI's form")
    name = kind.removeprefix("input_").removesuffix("_url")
    raise UnsupportedError(where, f"holds a part of type {_short(name)}, which no model here takes", "leave it out")


def _picture(where: str, part: Message, files: bool) -> Path | bytes:
    place = next((place for place in PLACES if part.get(place) is not None), "")
    given: Any = part.get(place)
    source: Any = given.get("url") if isinstance(given, Mapping) else given
    if isinstance(source, bytes):
        return _bounded(where, source)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str) or not source:
        raise UsageError(f"{where}: its image", "has neither a URL nor a path", TAKEN)
    if place == "base64" and not source.startswith("data:"):
        return _decoded(where, partial(_base64, source), len(source))
    scheme = SCHEME.match(source)
    if scheme is None:
        return _path(where, source, files)
    match scheme[0].lower():
        case "data:":
            return _of_data_url(where, source)
        case "file:":
            return _of_file_url(where, source, files)
    why = f"is at {_short(source)}, and nothing is fetched from a network"
    raise UsageError(f"{where}: its image", why, f"download it, and {TAKEN}")


def _of_data_url(where: str, url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise UsageError(f"{where}: its image", "is no data URL: it has no comma", TAKEN)
    is_base64 = head.rstrip().lower().endswith(";base64")
    decode = partial(_base64, unquote(body)) if is_base64 else partial(unquote_to_bytes, body)
    return _decoded(where, decode, len(body))


def _of_file_url(where: str, url: str, files: bool) -> Path:
    try:
        split = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{where}: its image", f"is no URL: {error}", TAKEN) from error
    if split.netloc not in ("", "localhost"):
        raise UsageError(f"{where}: its image", f"is on another machine: {_short(url)}", TAKEN)
    return _path(where, unquote(split.path, errors="surrogateescape"), files)


def _path(where: str, path: str, files: bool) -> Path:
    if not files:
        raise UsageError(f"{where}: its image", "is named as a file, and no files are read", "send it as a data URL")
    if "\0" in path or len(os.fsencode(path)) > os.pathconf("/", "PC_PATH_MAX"):
        raise UsageError(f"{where}: its image", f"is no path: {_short(path)}", TAKEN)
    return Path(path)


def _decoded(where: str, decode: Callable[[], bytes], length: int) -> bytes:
    if length > 2 * MAX_BYTES:
        raise _too_large(where)
    try:
        return _bounded(where, decode())
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"{where}: its image", f"is not valid base64: {error}", TAKEN) from error


def _base64(text: str) -> bytes:
    text = "".join(text.split()).rstrip("=").translate(URL_SAFE)
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _bounded(where: str, data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise _too_large(where)
    return data


def _too_large(where: str) -> UsageError:
    return UsageError(f"{where}: its image", f"is larger than {format_size(MAX_BYTES)}", "give a smaller image")


def _plain(where: str, value: object, room: list[int], depth: int = 0) -> Any:  # noqa: ANN401
    """Return a value of JSON as templates may see it, and nothing that has code behind it."""
    room[0] -= len(value) if isinstance(value, str) else 1
    if room[0] < 0:
        raise BudgetError("the messages", f"have more than {MAX_TEXT} characters", "shorten them")
    if depth > MAX_DEPTH:
        raise UsageError(where, f"is nested more than {MAX_DEPTH} deep", "flatten it")
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        pairs = ((_plain(where, str(key), room), item) for key, item in value.items())
        return {key: _plain(where, item, room, depth + 1) for key, item in pairs}
    if isinstance(value, (list, tuple)):
        return [_plain(where, item, room, depth + 1) for item in value]
    raise UsageError(where, f"holds a {type(value).__name__}, which is nothing that JSON has", "write it as JSON")


def _short(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_SHOWN])
    return shown if len(text) <= MAX_SHOWN else f"{shown}…"
