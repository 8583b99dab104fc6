"""A checkpoint's tokenizer, which is taken as its publisher's code: it may panic, and may search without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from tokenizers import AddedToken, Tokenizer

from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError
from edgeglm.runtimes.text.sidecars import Sidecars, damaged
from edgeglm.runtimes.text.template_prices import MAX_TEXT
from edgeglm.runtimes.text.templates import SETTINGS, extra_tokens, special_tokens

FILE = "tokenizer.json"
SECONDS = 20.0  # that encoding may take, and...
CHARACTERS_PER_SECOND = 20_000  # ... at least so much comes out of a second on a slow device
SHORT = 512  # characters that no pattern searches for long
REMEDY = "export a checkpoint that has one"
MAX_GROWTH = 64  # by what a tokenizer puts for what it replaces
T = TypeVar("T")


class BoundedTokenizer:
    """Encodes texts in bounded time, as transformers does with the same file.

    Args:
        sidecars: Of a checkpoint or a bundle.

    Raises:
        UnsupportedError: There is no tokenizer.json.
        DamagedFileError: It has one that cannot be a tokenizer.
    """

    def __init__(self, sidecars: Sidecars) -> None:
        self.file, data = sidecars.file(FILE), sidecars.bytes(FILE)
        if data is None:
            raise UnsupportedError(
                self.file, "is not there, and so the model takes no text", "export a checkpoint that has one"
            )
        _check_growth(self.file, data)
        self.library: Tokenizer = self._guarded(lambda: Tokenizer.from_buffer(data))
        # As transformers calls it; a length to be padded to may be any.
        self.library.no_padding()
        self.library.no_truncation()
        self.library.add_tokens(list(self._missing_tokens(sidecars)))
        self._stuck: Thread | None = None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return a text's tokens.

        Raises:
            BudgetError: The text is too long for any prompt.
            DamagedFileError: The tokenizer fails at it.
            UnsupportedError: It takes too long.
        """
        if len(text) > MAX_TEXT:
            raise BudgetError(
                "the prompt", f"has {len(text)} characters, and {MAX_TEXT} are taken", "shorten the prompt"
            )
        # A batch is encoded without Python's lock, so that this thread can wait for a time.
        found = self._within_time(
            text, lambda: self.library.encode_batch([text], add_special_tokens=add_special_tokens)
        )
        return list(found[0].ids)

    def encode_short(self, text: str) -> list[int]:
        """Return a text's tokens as `encode` does, without its thread, which takes longer than a short text."""
        if len(text) > SHORT:
            return self.encode(text)
        return list(self._guarded(lambda: self.library.encode(text, add_special_tokens=False)).ids)

    def _within_time(self, text: str, work: Callable[[], T]) -> T:
        if self._stuck is not None and self._stuck.is_alive():
            raise self._slow(text)
        done: list[T | BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:  # a panic is no Exception
                done.append(error)

        # Native code cannot be ended: a daemon does not keep the program from it.
        self._stuck = Thread(target=run, daemon=True)
        self._stuck.start()
        self._stuck.join(SECONDS + len(text) / CHARACTERS_PER_SECOND)
        if not done:
            raise self._slow(text)
        (result,) = done
        if isinstance(result, BaseException):
            raise self._failed(result) from result
        return result

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library has no narrower one, and a panic is no Exception
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> DamagedFileError:
        return damaged(self.file, f"is not a tokenizer that works: {str(error)[:200]}")

    def _slow(self, text: str) -> UnsupportedError:
        why = f"takes more than {SECONDS:g} seconds for a text of {len(text)} characters"
        return UnsupportedError(self.file, why, "correct its patterns, or take another checkpoint")

    def _missing_tokens(self, sidecars: Sidecars) -> Iterator[AddedToken]:
        """Yield the tokens that its settings add to those of tokenizer.json, as transformers does."""
        file, known = sidecars.file(SETTINGS), self.library.get_added_tokens_decoder()
        added = sidecars.object(SETTINGS).get("added_tokens_decoder") or {}
        have = {repr(token) for token in known.values()}
        named = {token.content for token in known.values()}
        for _, token in sorted(_numbered(file, added), key=itemgetter(0)):
            made = self._guarded(lambda token=token: AddedToken(**token))  # type: ignore[misc]
            if repr(made) not in have:
                named.add(made.content)
                yield made
        for content in dict.fromkeys([*special_tokens(sidecars).values(), *extra_tokens(sidecars)]):
            if content not in named:
                yield AddedToken(content, special=True)


def _numbered(file: Path, added: object) -> Iterator[tuple[int, dict[str, Any]]]:
    if not isinstance(added, dict):
        raise damaged(file, "its added_tokens_decoder is no object")
    for number, token in added.items():
        if not (number.isascii() and number.isdecimal() and isinstance(token, dict)):
            raise damaged(file, f"its added_tokens_decoder has {number[:20]!r}, which is no token")
        yield int(number), token


class _Parts(Struct):
    """The parts of tokenizer.json that replace text; its vocabulary, most of the file, is skipped."""

    normalizer: Any = None
    pre_tokenizer: Any = None
    decoder: Any = None


def _check_growth(file: Path, data: bytes) -> None:
    """Refuse a tokenizer that makes a long text of a short one: where memory is refused to it, the process ends."""
    try:
        parts = msgspec.json.decode(data, type=_Parts)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise damaged(file, f"is not a tokenizer: {error}") from error
    growth = 1
    for node in _nodes([parts.normalizer, parts.pre_tokenizer, parts.decoder]):
        content = node.get("content") if node.get("type") == "Replace" else None
        growth *= max(1, len(content)) if isinstance(content, str) else 1
        if growth > MAX_GROWTH:
            raise damaged(file, f"puts more than {MAX_GROWTH} times as much for what it replaces in a text")


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack += node.values()
        elif isinstance(node, list):
            stack += node
