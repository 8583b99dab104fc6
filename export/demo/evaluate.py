"""Evaluate a phone-agent checkpoint in plain transformers: ``python -m edgeglm.export.demo.evaluate``.

Without options, the demo checkpoint on its held-out evaluation screens, read from their WebP files, greedy.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import click

from edgeglm.actions import parse_action
from edgeglm.export.demo.metrics import Score, score
from edgeglm.export.demo.prompts import LANGUAGES, client_prompt
from edgeglm.export.demo.samples import DATA, make_sample
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.evaluate.tasks.success import succeeds
from edgeglm.export.samples.screenshots import Expected, Sample, read_samples

CHECKPOINT = Path(__file__).parent / "checkpoint"


def in_clients_form(samples: list[Sample], system: str) -> list[Sample]:
    """Return the demo's own evaluation samples, from the first on, as the client sends them with a system prompt."""
    sent = [make_sample("evaluation", index, system) for index in range(len(samples))]
    return [
        replace(sample, prompt=other.prompt, before=other.before) for sample, other in zip(samples, sent, strict=True)
    ]


def by_action(expected: list[Expected], answers: list[str]) -> dict[str, Score]:
    """Return a score for each type of action that is expected."""
    groups: dict[str, tuple[list[Expected], list[str]]] = defaultdict(lambda: ([], []))
    for want, answer in zip(expected, answers, strict=True):
        action = parse_action(want.response)
        wants, gots = groups[action.type if action else "none"]
        wants.append(want)
        gots.append(answer)
    return {name: score(*groups[name]) for name in sorted(groups)}


def table(total: Score, groups: dict[str, Score], seconds: float) -> str:
    """Return the report that `main` prints."""
    rows = [
        f"samples            {total.samples:8d}",
        f"action type        {total.action_type:8.2%}",
        f"step success       {total.step_success:8.2%}",
        f"tap hit            {total.tap_hit:8.2%}  of {total.taps} taps",
        f"median tap error   {total.median_tap_error:8.1f}  thousandths of the screen",
        f"seconds            {seconds:8.0f}",
        "",
        "step success by action",
    ]
    rows += [f"  {name:12s} {group.step_success:8.2%}  of {group.samples}" for name, group in groups.items()]
    return "\n".join(rows)


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT, help="A Hugging Face directory.")
@click.option("--data", type=click.Path(path_type=Path), default=DATA / "evaluation.jsonl", help="Samples (JSONL).")
@click.option("--form", default="short", type=click.Choice(["short", *LANGUAGES]), help="Of the demo's own samples.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N samples.")
@click.option("--wrong", is_flag=True, help="Also list the wrong answers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(checkpoint: Path, data: Path, form: str, limit: int | None, wrong: bool, as_json: bool) -> None:
    """Evaluate a phone-agent checkpoint on samples with known answers."""
    samples = list(read_samples(data, limit))
    if form != "short":
        samples = in_clients_form(samples, client_prompt(form, date.today()))
    expected = [sample.expected for sample in samples]
    started = time.perf_counter()
    agent = WholeOriginal.load(checkpoint)
    answers = list(agent.answer([sample.image for sample in samples], [sample.messages for sample in samples]))
    total, groups, seconds = (
        score(expected, answers),
        by_action(expected, answers),
        time.perf_counter() - started,
    )
    if as_json:
        actions = {name: asdict(group) for name, group in groups.items()}
        click.echo(json.dumps({**asdict(total), "by_action": actions}))
        return
    click.echo(table(total, groups, seconds))
    for sample, answer in zip(samples, answers, strict=True):
        if wrong and not succeeds(sample.expected, answer):
            click.echo(f"{sample.prompt!r}\n  want {sample.expected.response}\n  got  {answer}")


if __name__ == "__main__":
    main()
