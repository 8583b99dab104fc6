"""``edgeglm bench``: how fast a bundle answers on this machine, and in how much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import click

from edgeglm.cli.output import json_option, print_json
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.machine import describe_kernels, read_machine
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.progress import progress_line
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.program import MAX_THREADS
from edgeglm.runtimes.text.messages import message
from edgeglm.units import format_size


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--requests", type=click.IntRange(min=2), default=6, show_default=True, metavar="N", help="Number of screenshots."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=2), default=128, show_default=True, help="Maximum length of an answer."
)
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="Engine threads (default: all cores)."
)
@json_option
def command(bundle: Path, requests: int, max_new_tokens: int, threads: int | None, as_json: bool) -> None:
    """Measure a bundle's speed and memory on this machine."""
    samples, answers = list(read_samples(DEMO_DATA.evaluation, requests)), list[Answer]()
    with progress_line("answering") as show, Runner(bundle, threads) as runner:
        for sample in samples:
            answers.append(_answer(runner, sample, max_new_tokens))
            show(len(answers) / requests)
        used = runner.threads
    result, kernels = _result(answers), read_machine().int8_kernels
    if as_json:
        print_json({"bundle": str(bundle), "threads": used, **result, "int8_kernels": kernels})
    else:
        click.echo("\n".join([*_lines(result), f"int8          {describe_kernels(kernels)}"]))


def _answer(runner: Runner, sample: Sample, max_new_tokens: int) -> Answer:
    """Return the requests; each has another image, so that nothing of the one before is reused."""
    picture = sample.screen if runner.model.vision and isinstance(sample.screen, Path) else None
    messages = [message("user", sample.prompt, picture)]
    return runner.answer(messages, max_new_tokens=max_new_tokens, sampling=Sampling())


def _result(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the result: the first request, which pays for loading, and the median of the others."""
    cold, *warm = answers

    def middle(value: Callable[[Answer], float]) -> float:
        return round(median(map(value, warm)), 1)

    return {
        "requests": len(answers),
        "first_token_cold_ms": round(cold.time_to_first_token_ms, 1),
        "first_token_warm_ms": middle(lambda answer: answer.time_to_first_token_ms),
        "prefill_tokens_per_second": middle(_prefill_speed),
        "decode_tokens_per_second": middle(lambda answer: answer.decode_tokens_per_second),
        "peak_rss_bytes": warm[-1].peak_rss_bytes,
    }


def _prefill_speed(answer: Answer) -> float:
    return answer.prefilled_tokens / sum(phase.ms for phase in answer.phases if phase.name == "prefill") * 1e3


def _lines(result: Mapping[str, float]) -> Iterator[str]:
    yield f"first token   {result['first_token_cold_ms']:.1f} ms cold, {result['first_token_warm_ms']:.1f} ms warm"
    yield f"prefill       {result['prefill_tokens_per_second']:.1f} tokens/s"
    yield f"decode        {result['decode_tokens_per_second']:.1f} tokens/s"
    yield f"peak RSS      {format_size(int(result['peak_rss_bytes']))}"
