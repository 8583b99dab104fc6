"""The speed and the memory of a bundle on this machine, on screens of the demo or their questions alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.text.messages import message
from edgeglm.worker import Worker, serve

REQUESTS, TOKENS = 6, 128
# Tokens of an agent's answer, for one figure of its latency.
ANSWER = 64


class SpeedRequest(msgspec.Struct, frozen=True):
    """A bundle to measure.

    Args:
        bundle: Its folder.
        requests: Screens that it is asked about.
        max_new_tokens: Of an answer.
        threads: Of the engine; None for all cores.
    """

    bundle: Path
    requests: int = REQUESTS
    max_new_tokens: int = TOKENS
    threads: int | None = None


class Speed(msgspec.Struct, frozen=True):
    """The figures of a bundle: of the first request, which pays for loading, and medians of the others."""

    threads: int
    requests: int
    first_token_cold_ms: float
    first_token_warm_ms: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_rss_bytes: int

    @property
    def answer_ms(self) -> float:
        """The time of a question, with its screen, and `ANSWER` tokens, once the bundle is loaded."""
        return self.first_token_warm_ms + (ANSWER - 1) * 1e3 / self.decode_tokens_per_second


MEASURER = Worker("edgeglm.export.evaluate.speed", Speed, "the measurement")


def measure(request: SpeedRequest, show: Callable[[float], None] = lambda done: None) -> Speed:
    """Ask a bundle and measure it. Raises EdgeglmError where it cannot run."""
    samples, answers = list(read_samples(DEMO_DATA.evaluation, request.requests)), list[Answer]()
    with Runner(request.bundle, request.threads) as runner:
        for sample in samples:
            answers.append(_answer(runner, sample, request.max_new_tokens))
            show(len(answers) / request.requests)
        return _speed(answers, runner.threads)


def _answer(runner: Runner, sample: Sample, max_new_tokens: int) -> Answer:
    """Return the requests; each has another image, so that nothing of the one before is reused."""
    picture = sample.screen if runner.model.vision and isinstance(sample.screen, Path) else None
    messages = [message("user", sample.prompt, picture)]
    return runner.answer(messages, max_new_tokens=max_new_tokens, sampling=Sampling())


def _speed(answers: Sequence[Answer], threads: int) -> Speed:
    cold, *warm = answers

    def middle(value: Callable[[Answer], float]) -> float:
        return round(median(map(value, warm)), 1)

    return Speed(
        threads=threads,
        requests=len(answers),
        first_token_cold_ms=round(cold.time_to_first_token_ms, 1),
        first_token_warm_ms=middle(lambda answer: answer.time_to_first_token_ms),
        prefill_tokens_per_second=middle(_prefill_speed),
        decode_tokens_per_second=middle(lambda answer: answer.decode_tokens_per_second),
        peak_rss_bytes=warm[-1].peak_rss_bytes,
    )


def _prefill_speed(answer: Answer) -> float:
    return answer.prefilled_tokens / sum(phase.ms for phase in answer.phases if phase.name == "prefill") * 1e3


def main() -> int:
    """Measure in this process."""
    return serve(SpeedRequest, measure)
