"""``edgeglm run``: answer a prompt about a picture from a bundle, and say what it took."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgeglm.actions import Action
from edgeglm.cli.output import json_option, print_json
from edgeglm.runtimes.runner import Answer, Runner
from edgeglm.runtimes.sampling import Sampling
from edgeglm.units import format_size


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="What to ask.")
@click.option("--image", type=click.Path(path_type=Path), help="A picture: WebP, PNG or JPEG.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the engine (default: all cores).")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 is greedy (default: the bundle's).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling.")
@json_option
def command(
    bundle: Path,
    prompt: str,
    image: Path | None,
    max_new_tokens: int,
    threads: int | None,
    temperature: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Answer a prompt from a bundle, and say what it took."""
    runner = Runner(bundle, threads)
    generation = runner.bundle.manifest.generation
    warmth = generation.temperature if temperature is None else temperature
    sampling = Sampling(warmth, generation.top_p, generation.repetition_penalty)

    def show(text: str) -> None:
        if not as_json:
            click.echo(text, nl=False)

    answer = runner.answer(prompt, image, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, show=show)
    if as_json:
        print_json(_summary(answer))
    else:
        click.echo("\n".join(["", "", *_report(answer)]))


def _action(action: Action | None) -> dict[str, object] | None:
    return {"action": action.type, **action.arguments} if action else None


def _summary(answer: Answer) -> dict[str, object]:
    return {
        "text": answer.text,
        "action": _action(answer.action),
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": answer.generated_tokens,
        "time_to_first_token_ms": round(answer.time_to_first_token_ms, 1),
        "decode_tokens_per_second": round(answer.decode_tokens_per_second, 1),
        "peak_rss_bytes": answer.peak_rss_bytes,
        "state_bytes": answer.state_bytes,
        "phases": [asdict(phase) for phase in answer.phases],
        "modules": [asdict(module) for module in answer.modules],
    }


def _report(answer: Answer) -> list[str]:
    lines = [f"action  {_action(answer.action)}"] if answer.action else []
    lines += [f"{'PHASE':<16}{'MS':>8}  RSS"]
    lines += [f"{phase.name:<16}{phase.ms:>8.1f}  {format_size(phase.rss_bytes)}" for phase in answer.phases]
    return [
        *lines,
        f"tokens  {answer.prompt_tokens} of prompt, {answer.generated_tokens} generated; first after "
        f"{answer.time_to_first_token_ms:.0f} ms, then {answer.decode_tokens_per_second:.1f} a second",
        f"memory  peak RSS {format_size(answer.peak_rss_bytes)}; keys and values {format_size(answer.state_bytes)}",
    ]
