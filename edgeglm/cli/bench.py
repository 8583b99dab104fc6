"""``edgeglm bench``: how fast a bundle answers on this machine, and in how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from edgeglm.cli.output import json_option, print_json
from edgeglm.export.evaluate.speed import REQUESTS, TOKENS, Speed, SpeedRequest, measure
from edgeglm.machine import describe_kernels, read_machine
from edgeglm.runtimes.core.progress import progress_line
from edgeglm.runtimes.program import MAX_THREADS
from edgeglm.units import format_size


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--requests",
    type=click.IntRange(min=2),
    default=REQUESTS,
    show_default=True,
    metavar="N",
    help="Number of screenshots.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=2),
    default=TOKENS,
    show_default=True,
    help="Maximum length of an answer.",
)
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="Engine threads (default: all cores)."
)
@json_option
def command(bundle: Path, requests: int, max_new_tokens: int, threads: int | None, as_json: bool) -> None:
    """Measure a bundle's speed and memory on this machine."""
    with progress_line("answering") as show:
        speed = measure(SpeedRequest(bundle, requests, max_new_tokens, threads), show)
    kernels = read_machine().int8_kernels
    if as_json:
        print_json({"bundle": str(bundle), **msgspec.structs.asdict(speed), "int8_kernels": kernels})
    else:
        click.echo("\n".join([*_lines(speed), f"int8          {describe_kernels(kernels)}"]))


def _lines(speed: Speed) -> Iterator[str]:
    yield f"first token   {speed.first_token_cold_ms:.1f} ms cold, {speed.first_token_warm_ms:.1f} ms warm"
    yield f"prefill       {speed.prefill_tokens_per_second:.1f} tokens/s"
    yield f"decode        {speed.decode_tokens_per_second:.1f} tokens/s"
    yield f"peak RSS      {format_size(speed.peak_rss_bytes)}"
