"""Grammar of an answer: the tokens that may come next, and those that must, by llguidance."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import EdgeglmError
from edgeglm.runtimes.text.token_bytes import byte_letters
from edgeglm.runtimes.text.tokenizer import BoundedTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# So many tokens before forced ones are encoded with them, to see how the model itself splits that text.
WINDOW = 16
# Of llguidance's log: it writes to stderr, where only lines of ours belong.
SILENT = 0
# As `json.dumps` writes it: a model that may write any blanks may write them without end. A schema's own key
# ``x-guidance`` goes before. ``oneOf``, as which unions with a discriminator are written, is followed as ``anyOf``.
JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
# What precedes the name of a special token where llguidance takes a vocabulary.
SPECIAL = b"\xff"
CUT = "\ufffd"  # a character of which some bytes are missing
DEAD_END = "NoExtensionBias"  # llguidance's word for it


class GrammarError(ValueError):
    """Raised where a grammar cannot be used; the message says why, in one line."""


def installed() -> bool:
    """Return whether llguidance is here."""
    try:
        importlib.import_module("llguidance")
    except ImportError:
        return False
    return True


class Vocabulary:
    """A tokenizer as llguidance takes it.

    Args:
        tokenizer: Of the bundle.
        size: Of the model's logits.
        ends: The tokens that end an answer.

    Raises:
        GrammarError: Its tokens are not made of bytes.
        ImportError: llguidance is not here.
    """

    def __init__(self, tokenizer: BoundedTokenizer, size: int, ends: Sequence[int]) -> None:
        self.tokenizer, self.size, self.ends = tokenizer, size, tuple(ends)
        library = importlib.import_module("llguidance")
        words = _Words(tokenizer, size, self.ends[0] if self.ends else 0)
        wrapped = library.TokenizerWrapper(words)
        self.library: Any = library.LLTokenizer(wrapped, n_vocab=size, eos_token=list(self.ends) or None)

    def canonical(self, before: Sequence[int], forced: Sequence[int]) -> bool:
        """Return whether the tokenizer splits the text of tokens behind others into just those tokens."""
        window = [*before[-WINDOW:]]
        text = self._text([*window, *forced])
        while window and text.startswith(CUT):  # the window begins within a character
            window = window[1:]
            text = self._text([*window, *forced])
        wanted = [*window[-1:], *forced]
        try:
            return self.tokenizer.encode_short(text)[-len(wanted) :] == wanted
        except EdgeglmError:
            return False

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.library.decode(list(tokens), skip_special_tokens=False))


class Grammar:
    """An answer grammar, compiled for a vocabulary.

    Args:
        vocabulary: Of the bundle.
        source: In Lark, or as llguidance writes a JSON schema (`schema_source`).

    Raises:
        GrammarError: It is none, or allows no answer.
    """

    def __init__(self, vocabulary: Vocabulary, source: str) -> None:
        self.vocabulary = vocabulary
        library = importlib.import_module("llguidance")
        self._matcher: Any = library.LLMatcher(vocabulary.library, source, log_level=SILENT)
        if self._matcher.is_error():
            raise GrammarError(_line(self._matcher.get_error()))
        guide = Guide(vocabulary, self._matcher.deep_copy())
        guide.allowed()
        if guide.lost is not None:
            raise GrammarError(f"it allows no answer: {guide.lost}")

    def begin(self, begun: Sequence[int] = ()) -> Guide | None:
        """Return what guides an answer, behind the tokens that it has begun with; None if those are outside."""
        guide = Guide(self.vocabulary, self._matcher.deep_copy())
        for token in begun:
            guide.accept(token)
        return None if begun and guide.lost else guide


class Guide:
    """Follows one answer through its grammar.

    Attributes:
        lost: Why the grammar is no longer followed, such as its complexity; None while it is.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: Any) -> None:  # noqa: ANN401 (llguidance has no types)
        self.vocabulary, self._matcher = vocabulary, matcher
        self.lost: str | None = None
        self._tokens: list[int] = []

    def forced(self) -> list[int]:
        """Return the tokens that must come next, in the split that the model itself would write.

        They are none where its split depends on what comes behind. At the grammar's end it is the end token.
        """
        if self.lost is not None:
            return []
        if self._matcher.is_stopped() and not self._failed():
            return [*self.vocabulary.ends[:1]]
        forced = self._matcher.compute_ff_tokens()
        # Behind a tokenizer that normalizes, llguidance returns the split of another text.
        inside = forced and self.agreeing(forced) == forced
        return forced if inside and self.vocabulary.canonical(self._tokens, forced) else []

    def allowed(self) -> NDArray[np.bool_] | None:
        """Return which tokens may come next, (vocabulary); None where any may, because the grammar is lost."""
        if self.lost is not None:
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._failed():
            return None
        allowed = np.unpackbits(bits, count=self.vocabulary.size, bitorder="little").astype(bool)
        if not allowed.any():
            self.lost = "it allows no token here"
        return allowed if self.lost is None else None

    def takes(self, token: int) -> bool:
        """Return whether a token may come next: cheaper than `allowed`, which alone knows of the end token."""
        return self.lost is None and self._matcher.validate_tokens([token]) == 1

    def accept(self, token: int) -> None:
        """Take the next token of the answer, which is not the one that ends it."""
        self._tokens.append(token)
        if self.lost is None and not self._matcher.consume_token(token):
            self._failed()
            self.lost = self.lost or "the answer left it"

    def agreeing(self, tokens: Sequence[int]) -> list[int]:
        """Return the first of some tokens that may come next, one behind the other."""
        if self.lost is not None:
            return [*tokens]
        return [*tokens[: self._matcher.validate_tokens(list(tokens))]]

    def drafted(self, tokens: Sequence[int]) -> list[int]:
        """Return those of a draft that may come next, and what the grammar forces behind them."""
        inside = self.agreeing(tokens)
        if self.lost is not None or not inside or any(token in self.vocabulary.ends for token in inside):
            return inside
        self._matcher.consume_tokens(inside)
        forced = self._matcher.compute_ff_tokens()
        if not self._matcher.rollback(len(inside)):
            self._failed()
        return [*inside, *forced]

    def _failed(self) -> bool:
        if self._matcher.is_error():
            self.lost = _line(self._matcher.get_error())
        return self.lost is not None


class _Words:
    """A vocabulary in the form of llguidance's `TokenizerWrapper`."""

    def __init__(self, tokenizer: BoundedTokenizer, size: int, end: int) -> None:
        self.tokenizer, self.eos_token_id, self.bos_token_id = tokenizer, end, None
        special = tokenizer.library.get_added_tokens_decoder()
        self.special_token_ids = [token for token in special if token < size]
        self.tokens = _token_bytes(tokenizer.library, size)
        words = [re.escape(word.content) for word in special.values() if len(word.content) > 1]
        self._special = re.compile("|".join(words) or "(?!)")

    def __call__(self, text: bytes | str) -> list[int]:
        """Return a text's tokens, among which there are no special ones: the grammar says where those may come."""
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        cuts = [0, *(match.start() + 1 for match in self._special.finditer(text)), len(text)]
        return [token for begin, end in pairwise(cuts) for token in self.tokenizer.encode_short(text[begin:end])]


def _token_bytes(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """Return the bytes of each token of a byte-level vocabulary, none for those that it lacks."""
    letters, words = byte_letters(), [b""] * size
    added = tokenizer.get_added_tokens_decoder()
    try:
        for word, token in tokenizer.get_vocab().items():
            if token < size:
                words[token] = SPECIAL + word.encode() if token in added else word.translate(letters).encode("latin-1")
    except UnicodeEncodeError as error:
        raise GrammarError("the tokenizer's tokens are not made of bytes") from error
    return words


def schema_source(schema: str) -> str:
    """Return a JSON schema as a `Grammar` takes it.

    Raises:
        GrammarError: It is no JSON object.
        ImportError: llguidance is not here.
    """
    library = importlib.import_module("llguidance")
    try:
        return str(library.LLMatcher.grammar_from_json_schema(schema, defaults=JSON_FORM))
    except (ValueError, RecursionError) as error:
        raise GrammarError(_line(str(error))) from error


def _line(message: str) -> str:
    """Return what a message of llguidance says, without the states and sources behind it."""
    line = " ".join(message.partition("<state>")[0].split())[:300]
    return "no token may come next" if line == DEAD_END else line
