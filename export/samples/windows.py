"""A text in windows of one length, which a model is judged on or calibrated with."""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeglm.bundle import Bundle
from edgeglm.errors import UsageError
from edgeglm.files import opened
from edgeglm.runtimes.text.sidecars import Sidecars
from edgeglm.runtimes.text.tokenizer import BoundedTokenizer

# Tokens of a window. Losses of neighbouring tokens are alike, so whole windows are drawn for an interval.
WINDOW = 256
# Fewer draws of windows than these say nothing of an interval.
FEWEST = 8
# Characters that are tokenized at once, up to the end of a line.
PIECE = 1 << 16
# Of a text that is read to its end; of a longer one, so many windows as are asked for.
MAX_BYTES = 64 << 20
TEXT = "give a text file in UTF-8; of a long one a part, or --limit where the command has it"


@dataclass(frozen=True)
class Windows:
    """A text in windows.

    ``sequences`` (n, length) begin with the tokens that the tokenizer puts before every text; the last ``count`` of
    each are scored.
    """

    sequences: NDArray[np.int64]
    count: int


def read_windows(bundle: Bundle, file: Path, limit: int | None) -> Windows:
    """Return windows of a UTF-8 text, as long as the bundle's context allows.

    Args:
        bundle: Its tokenizer is used.
        file: The text.
        limit: The number of windows at most.

    Raises:
        UsageError: The file is no text, or too short; the bundle has no tokenizer.
    """
    return cut_windows(bundle_tokenizer(bundle), file, WINDOW, bundle.manifest.model.max_positions, limit)


def cut_windows(tokenizer: Tokenizer, file: Path, length: int, context: int, limit: int | None) -> Windows:
    """Return the first `limit` windows of a UTF-8 text; what is left at its end makes none.

    Args:
        tokenizer: Of the model.
        file: The text.
        length: Of a window, without the tokens that stand before every text.
        context: Of the model, with them.
        limit: So many at most.

    Raises:
        UsageError: The file is no text, or too short.
    """
    prefix = tokenizer.encode("").ids
    scored = min(length, context - len(prefix))
    wanted = None if limit is None else limit * scored
    tokens = array("q")
    for piece in _pieces(file, MAX_BYTES if wanted is None else None):
        tokens.extend(tokenizer.encode(piece, add_special_tokens=False).ids)
        if wanted is not None and len(tokens) >= wanted:
            break
    count = (len(tokens) if wanted is None else min(wanted, len(tokens))) // scored
    if limit is not None and limit < FEWEST:
        raise UsageError("--limit", f"{limit} windows of text say nothing", f"give at least {FEWEST}")
    if count < FEWEST:
        why = f"has {len(tokens)} tokens, {count} windows of {scored}"
        raise UsageError(file, why, f"give a text of at least {FEWEST * scored} tokens")
    windows = np.frombuffer(tokens, np.int64)[: count * scored].reshape(count, scored)
    begin = np.tile(np.array(prefix, np.int64), (count, 1))
    return Windows(np.concatenate([begin, windows], axis=1), scored if prefix else scored - 1)


def bundle_tokenizer(bundle: Bundle) -> Tokenizer:
    """Return the tokenizer of a bundle. Raises UsageError, DamagedFileError."""
    if "tokenizer/tokenizer.json" not in bundle.manifest.files:
        raise UsageError(bundle.folder, "has no tokenizer, and reads no text", "export with a tokenizer.json")
    return read_tokenizer(bundle.path("tokenizer/tokenizer.json"))


def read_tokenizer(file: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint or bundle, as the runner does. Raises DamagedFileError."""
    return BoundedTokenizer(Sidecars(file.parent)).library


def _pieces(file: Path, limit: int | None) -> Iterator[str]:
    """Yield whole lines, some at a time, and a longer line in parts, so that no text is in memory as a whole.

    A part ends before a space where it has one: a word is not cut.
    """
    try:
        with opened(file, TEXT, limit) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
            lines, size, rest = [], 0, ""
            while line := rest + text.readline(PIECE):
                rest = ""
                if len(line) >= PIECE and not line.endswith("\n") and (cut := line.rfind(" ")) > 0:
                    line, rest = line[:cut], line[cut:]
                lines.append(line)
                size += len(line)
                if size >= PIECE:
                    yield "".join(lines)
                    lines, size = [], 0
            yield "".join(lines)
    except UnicodeDecodeError as error:
        raise UsageError(file, f"is not UTF-8 text: {error.reason}", TEXT) from error
