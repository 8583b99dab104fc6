"""Check the prefixes whose state a bundle ships, and count their tokens, before work starts."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from edgeglm.engines import ENGINES
from edgeglm.errors import BudgetError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.sidecars import open_chat
from edgeglm.export.prepare.release import released
from edgeglm.export.prepare.types import Opened
from edgeglm.runtimes.core.keep_options import read_prefix
from edgeglm.runtimes.core.prefixes import ANOTHER, OTHER
from edgeglm.runtimes.core.prompt import shared_length
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import Message, normalize, pictures

ON_DEVICE = "leave it out, and give --prefix to edgeglm run or serve on the device, which computes it once"


@released
def prefix_lengths(opened: Opened) -> list[int]:
    """Return how many tokens each prefix has, pictures in their largest shape.

    Raises:
        UsageError: A file has no messages, or the model takes no text.
        UnsupportedError: The device would not believe what is computed here, or the messages have no prompt.
        BudgetError: One is longer than a conversation.
    """
    files = opened.request.prefixes
    if not files:
        return []
    _check_place(opened)
    prefixes = [normalize(read_prefix(file)) for file in files]
    if (chat := open_chat(opened.checkpoint)) is None:
        raise UsageError("--prefix", f"{opened.request.name} has no tokenizer.json, and takes no text", "leave it out")
    return [_length(opened, chat, file, messages) for file, messages in zip(files, prefixes, strict=True)]


def _check_place(opened: Opened) -> None:
    """Raise UnsupportedError where keys and values that are computed here are none for the device."""
    profile = opened.request.profile
    engine = next(ENGINES[choice.engine] for choice in opened.choices if choice.is_decoder and choice.engine)
    if not engine.gives_state:
        why = f"{profile.name} has the decoder on {engine.title}, which gives no keys and values away"
        raise UnsupportedError("--prefix", why, "leave it out")
    if profile.cpu.architecture.value != platform.machine():
        there = profile.cpu.architecture.value
        why = f"{profile.name} is {there} and this machine {platform.machine()}, whose keys and values differ"
        raise UnsupportedError("--prefix", why, ON_DEVICE)


def _length(opened: Opened, chat: Chat, file: Path, messages: Sequence[Message]) -> int:
    images = len(pictures(messages))
    if images and not opened.image_tokens:
        raise UnsupportedError(file, f"has an image, and {opened.request.name} takes none", "leave the image out")
    first, second = (chat.encode([*messages, question]) for question in (ANOTHER, OTHER))
    count = shared_length(first, second) + images * max(0, opened.image_tokens - 1)
    if count >= opened.context:
        why = f"takes {count} tokens, and a conversation has {opened.context}"
        raise BudgetError(f"--prefix {file}", why, "shorten it, or allow more with --context")
    return count
