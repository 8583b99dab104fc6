"""Language: perplexity and top-1 agreement with the original on a text, teacher-forced in windows of one length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeglm.bundle import Bundle
from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.metric import PERPLEXITY, SHARE, Metric
from edgeglm.export.model import Rows
from edgeglm.export.validation.cache import cached, checkpoint_key
from edgeglm.export.validation.reference import StreamedDecoder
from edgeglm.export.validation.statistics import RULE_OF_THREE, Values, compare, mean
from edgeglm.runtimes.embedding import EmbeddingRows
from edgeglm.runtimes.ort import Decoder
from edgeglm.runtimes.positions import prompt_positions
from edgeglm.runtimes.window import capacity_for

# Tokens of a window. Losses of neighbouring tokens are alike, so whole windows are drawn for an interval.
WINDOW = 256
# Fewer draws of windows than these say nothing of an interval.
FEWEST = 8
# Characters that are tokenized at once, up to the end of a line.
PIECE = 1 << 16


@dataclass(frozen=True)
class Windows:
    """A text in windows.

    ``sequences`` (n, length) begin with the tokens that the tokenizer puts before every text; the last ``count`` of
    each are scored.
    """

    sequences: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class Scores:
    """Of every scored token, by window: its log-probability, and the token that the model finds the likeliest."""

    log_probabilities: list[list[float]]
    top: list[list[int]]


def read_windows(bundle: Bundle, file: Path, limit: int | None) -> Windows:
    """The first `limit` windows of a UTF-8 text; what is left at its end makes none.

    Raises:
        UsageError: The file is no text, or too short; the bundle has no tokenizer.
    """
    tokenizer = _tokenizer(bundle)
    prefix = tokenizer.encode("").ids
    scored = min(WINDOW, bundle.manifest.model.max_positions - len(prefix))
    wanted = None if limit is None else limit * scored
    tokens: list[int] = []
    for piece in _pieces(file):
        tokens += tokenizer.encode(piece, add_special_tokens=False).ids
        if wanted is not None and len(tokens) >= wanted:
            break
    count = len(tokens[:wanted]) // scored
    if limit is not None and limit < FEWEST:
        raise UsageError("--limit", f"{limit} windows of text say nothing", f"give at least {FEWEST}")
    if count < FEWEST:
        why = f"has {len(tokens)} tokens, {count} windows of {scored}"
        raise UsageError(file, why, f"give a text of at least {FEWEST * scored} tokens")
    windows = np.array(tokens[: count * scored], np.int64).reshape(count, scored)
    begin = np.tile(np.array(prefix, np.int64), (count, 1))
    return Windows(np.concatenate([begin, windows], axis=1), scored if prefix else scored - 1)


def artifact_scores(bundle: Bundle, windows: Windows) -> Scores:
    """What the bundle's decoder makes of the windows: token after token, as it decodes."""
    model, rows = bundle.manifest.model, EmbeddingRows(bundle)
    module = bundle.module("decoder")
    assert module is not None
    length = windows.sequences.shape[1]
    capacity = capacity_for(length, model.max_positions)
    decoder = Decoder(bundle.path(module.file), len(os.sched_getaffinity(0)), capacity)
    positions = prompt_positions([False] * length, (1, 1) if model.rope.mrope_sections else None)
    scores = Scores([], [])
    for sequence in windows.sequences.tolist():
        decoder.truncate(0)
        logits = [
            decoder.step(rows.gather([token])[None], positions[:, :, index : index + 1])
            for index, token in enumerate(sequence[:-1])
        ]
        kept = np.stack(logits[-windows.count :]).astype(np.float64)
        kept -= kept.max(-1, keepdims=True)
        targets = sequence[-windows.count :]
        right = kept[np.arange(windows.count), targets] - np.log(np.exp(kept).sum(-1))
        scores.log_probabilities.append(right.tolist())
        scores.top.append(kept.argmax(-1).tolist())
    decoder.close()
    return scores


def reference_scores(folder: Path, source: Rows, windows: Windows) -> Scores:
    """What the original makes of them, streamed block by block; kept in the cache by checkpoint and windows."""

    def compute() -> Scores:
        log_probabilities, top = StreamedDecoder(folder, source).score(windows.sequences, windows.count)
        return Scores(log_probabilities.tolist(), top.tolist())

    key = (b"text", checkpoint_key(folder), f"{windows.sequences.shape} {windows.count}".encode())
    return cached((*key, windows.sequences.tobytes()), Scores, compute)


def compare_texts(reference: Scores, artifact: Scores, limit: float) -> list[Metric]:
    """Perplexity, whose drop is a share of the reference's, and top-1 agreement, of which the reference has all."""
    losses = [-np.array(scores.log_probabilities).mean(-1) for scores in (reference, artifact)]
    agreement = (np.array(reference.top) == np.array(artifact.top)).mean(-1)
    tokens = sum(map(len, reference.top))
    return [
        compare("perplexity", PERPLEXITY, losses[0], losses[1], limit, _perplexity),
        compare(
            "top_1_agreement", SHARE, np.ones_like(agreement), agreement, limit, mean, unseen=RULE_OF_THREE / tokens
        ),
    ]


def worst_windows(
    bundle: Bundle, windows: Windows, reference: Scores, artifact: Scores, count: int
) -> list[tuple[str, float, float]]:
    """The windows on which the artifact loses most: text, and perplexity of reference and artifact."""
    losses = [-np.array(scores.log_probabilities).mean(-1) for scores in (reference, artifact)]
    tokenizer = _tokenizer(bundle)
    return [
        (
            tokenizer.decode(windows.sequences[index, -windows.count :].tolist()),
            float(np.exp(losses[0][index])),
            float(np.exp(losses[1][index])),
        )
        for index in np.argsort(losses[0] - losses[1], kind="stable")[:count].tolist()
    ]


def _perplexity(losses: Values) -> Values:
    return np.asarray(np.exp(losses.mean(-1)))


def _tokenizer(bundle: Bundle) -> Tokenizer:
    if "tokenizer/tokenizer.json" not in bundle.manifest.files:
        raise UsageError(bundle.folder, "has no tokenizer, and reads no text", "export with a tokenizer.json")
    file = bundle.path("tokenizer/tokenizer.json")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no narrower one
        raise DamagedFileError(file, f"is not a tokenizer: {error}", "export the bundle again") from error


def _pieces(file: Path) -> Iterator[str]:
    """Whole lines, some at a time, so that a long text is not in memory as a whole."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            while lines := opened.readlines(PIECE):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise UsageError(file, f"is not UTF-8 text: {error.reason}", "give a text file in UTF-8") from error
    except (OSError, ValueError) as error:
        raise UsageError(file, f"cannot be read: {error}", "give a text file in UTF-8") from error
