"""Language: perplexity and top-1 agreement with the original on a text, teacher-forced in windows of one length."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeglm.bundle import Bundle
from edgeglm.export.evaluate.fp16_sessions import open_decoder
from edgeglm.export.evaluate.original.cache import cached, checkpoint_key
from edgeglm.export.evaluate.original.decoder import StreamedDecoder
from edgeglm.export.evaluate.statistics import RULE_OF_THREE, Values, compare, mean
from edgeglm.export.metric import PERPLEXITY, SHARE, Metric
from edgeglm.export.model import Original
from edgeglm.export.samples.windows import Windows, bundle_tokenizer
from edgeglm.runtimes.core.embedding import EmbeddingRows
from edgeglm.runtimes.core.window import capacity_for
from edgeglm.runtimes.inputs.positions import prompt_positions


@dataclass(frozen=True)
class Scores:
    """The scored tokens by window: log-probability, and the token that the model finds the likeliest."""

    log_probabilities: list[list[float]]
    top: list[list[int]]


def artifact_scores(bundle: Bundle, windows: Windows, show: Callable[[float], object] = lambda _: None) -> Scores:
    """Return what the bundle's decoder makes of the windows: token after token, as it decodes."""
    model, rows = bundle.manifest.model, EmbeddingRows(bundle)
    length = windows.sequences.shape[1]
    capacity = capacity_for(length, model.max_positions)
    decoder = open_decoder(bundle, bundle.decoder, len(os.sched_getaffinity(0)), capacity)
    positions = prompt_positions([False] * length, [] if model.rope.mrope_sections else None)
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
        show(len(scores.top) / len(windows.sequences))
    decoder.close()
    return scores


def reference_scores(source: Original, windows: Windows) -> Scores:
    """Return what the original makes of them, streamed block by block; kept in the cache by checkpoint and windows."""

    def compute() -> Scores:
        log_probabilities, top = StreamedDecoder(source).score(windows.sequences, windows.count)
        return Scores(log_probabilities.tolist(), top.tolist())

    which = checkpoint_key(source.folder, source.adapter_sha256)
    key = (b"text", which, f"{windows.sequences.shape} {windows.count}".encode())
    return cached((*key, windows.sequences.tobytes()), Scores, compute)


def compare_texts(reference: Scores, artifact: Scores, limit: float) -> list[Metric]:
    """Compare perplexity, whose drop is a share of the reference's, and top-1 agreement with the reference."""
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
    """Return the windows on which the artifact loses most: text, and perplexity of reference and artifact."""
    losses = [-np.array(scores.log_probabilities).mean(-1) for scores in (reference, artifact)]
    tokenizer = bundle_tokenizer(bundle)
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
