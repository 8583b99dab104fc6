"""Options of ``run`` and ``serve`` for what later runners find in the user's store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeglm.errors import UsageError
from edgeglm.files import read_bytes
from edgeglm.runtimes.core.prefixes import Keep
from edgeglm.runtimes.inputs.masks import parse_mask
from edgeglm.runtimes.text.messages import MAX_TEXT, Message, message, normalize
from edgeglm.units import parse_size

DEFAULT = "1GiB"
MAX_BYTES = 256 << 20  # of a file of messages, with pictures in it
REMEDY = "give a text file, or a .json file with a list of messages"


def add_keep_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--prefix``, ``--keep`` and ``--mask``."""
    parser.add_argument(
        "--prefix",
        type=Path,
        metavar="FILE",
        help="a system prompt as text, or messages as .json: computed once, and restored by later starts",
    )
    parser.add_argument(
        "--keep",
        metavar="SIZE",
        help=f"bytes of the disk that prefixes and images may take, least recently used out (default: {DEFAULT} with "
        "--prefix)",
    )
    parser.add_argument(
        "--mask",
        type=parse_mask,
        action="append",
        default=[],
        metavar="X,Y,W,H",
        help="blank a region of each image, such as a clock, in the image's pixels; may be given several times",
    )


def read_keep(prefix: Path | None, size: str | None) -> Keep | None:
    """Return what the options ask for.

    Raises:
        UsageError: The file has no messages, or the size is none.
    """
    if prefix is None and size is None:
        return None
    return Keep(parse_size(DEFAULT if size is None else size, "--keep"), read_prefix(prefix) if prefix else ())


def read_prefix(file: Path) -> Sequence[Message]:
    """Return the messages of a file: a text is a system prompt; pictures lie beside a list.

    Raises:
        UsageError: It cannot be read, or has no messages.
        EdgeglmError: As `normalize`.
    """
    data = read_bytes(file, REMEDY, MAX_BYTES if file.suffix == ".json" else 4 * MAX_TEXT)
    if file.suffix != ".json":
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise UsageError(file, "is not UTF-8 text", REMEDY) from error
        if not text.strip():
            raise UsageError(file, "is empty", REMEDY)
        return [message("system", text)]
    try:
        messages = msgspec.json.decode(data, type=list[dict[str, object]])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(file, f"is no list of messages: {error}", REMEDY) from error
    if not messages:
        raise UsageError(file, "has no message", REMEDY)
    return [_beside(file.parent, message) for message in normalize(messages)]


def _beside(folder: Path, message: Message) -> Message:
    """Return a message whose pictures' paths begin in a folder."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    parts = [
        {**part, "image": folder / part["image"]} if isinstance(part.get("image"), Path) else part for part in content
    ]
    return {**message, "content": parts}
