"""Language: perplexity and top-1 agreement with the original on a text, teacher-forced in windows of one length."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.export.evaluate.fp16_sessions import MeasuringSessions
from edgeglm.export.evaluate.original.cache import cached, checkpoint_key
from edgeglm.export.evaluate.statistics import RULE_OF_THREE, Values, compare, mean
from edgeglm.export.metric import PERPLEXITY, SHARE, Metric
from edgeglm.export.model import Original
from edgeglm.export.samples.windows import Windows, bundle_tokenizer
from edgeglm.runtimes.core.prompt import Prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Allowing, Sampler, Sampling


@dataclass(frozen=True)
class Scores:
    """The scored tokens by window: log-probability, and the token that the model finds the likeliest."""

    log_probabilities: list[list[float]]
    top: list[list[int]]


class Scorer(Sampler):
    """Leads the runner along given tokens, and keeps what the model says of each of them.

    Attributes:
        log_probabilities: Of the given tokens.
        top: The likeliest token in each place.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(Sampling())
        self.tokens, self.log_probabilities, self.top = tokens, list[float](), list[int]()

    def choose(self, logits: NDArray[np.float32], seen: Sequence[int], guide: Allowing | None = None) -> int:
        """Return the next of the tokens."""
        token, scores = self.tokens[len(self.top)], logits.astype(np.float64)
        scores -= scores.max()
        self.log_probabilities.append(float(scores[token] - np.log(np.exp(scores).sum())))
        self.top.append(int(scores.argmax()))
        return token


def artifact_scores(bundle: Bundle, windows: Windows, show: Callable[[float], object] = lambda _: None) -> Scores:
    """Return what the runner's decoder makes of the windows: token after token, as it decodes."""
    scores = Scores([], [])
    with Runner(bundle.folder, sessions=MeasuringSessions()) as runner:
        for first, *rest in windows.sequences.tolist():
            runner.forget()
            scorer = Scorer(rest)
            deque(runner.complete(Prompt.of_text([first], runner.model), scorer, len(rest), ends=()), maxlen=0)
            scores.log_probabilities.append(scorer.log_probabilities[-windows.count :])
            scores.top.append(scorer.top[-windows.count :])
            show(len(scores.top) / len(windows.sequences))
    return scores


def reference_scores(source: Original, windows: Windows) -> Scores:
    """Return what the original makes of them, streamed block by block; kept in the cache by checkpoint and windows."""

    def compute() -> Scores:
        from edgeglm.export.evaluate.original.decoder import StreamedDecoder

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
