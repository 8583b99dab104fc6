"""The matrix as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from edgeglm.export.matrix.outcome import Outcome, Stage
from edgeglm.units import format_size

HEADINGS = (
    "target", "precision", "format", "exported", "compiled by", "executed on", "error", "accuracy", "size", "peak RSS",
)  # fmt: skip
VERBS = {"exported": "export", "compiled": "build", "executed": "run", "validated": "validate"}
# The metric that says most of a task; of another task the first one.
TELLING = "step_success"
INTRODUCTION = """\
# Compatibility

Written by [`edgeglm matrix`](cli.md#edgeglm-matrix); do not edit it. Every cell was exported, compiled, executed and
measured by the commands of this version on one machine, as far as that machine could.

- **compiled by**: the compiler of the modules; `-` if the engine needs none.
- **executed on**: the engine that answered here. A module for a missing accelerator runs on ONNX Runtime, from the same
  graph.
- **error**: the largest relative L2 error of a module's output against the original.
- **accuracy**: the bundle's on its engine, its drop against the original, and the number of samples.
- **peak RSS**: the peak of `edgeglm run` with one answer, on this machine.
- **failed**: the reason is below the table. **not run**: not tried."""


def page(outcomes: Iterable[Outcome]) -> str:
    """Return the whole page; a table a model, then why what failed did."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.model)
    environments = _distinct(ordered)
    lines = [INTRODUCTION]
    for model, group in groupby(ordered, key=lambda outcome: outcome.model):
        lines += ["", f"## {model}", "", *_table(list(group), environments)]
    return "\n".join([*lines, "", "## Versions", "", *_versions(environments)]) + "\n"


def _distinct(outcomes: Iterable[Outcome]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for outcome in outcomes:
        if outcome.environment not in found:
            found.append(outcome.environment)
    return found


def _table(outcomes: Sequence[Outcome], environments: Sequence[dict[str, str]]) -> Iterator[str]:
    several = len(environments) > 1
    headings = (*HEADINGS, "versions") if several else HEADINGS
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    for outcome in outcomes:
        cells = (*_row(outcome), str(environments.index(outcome.environment) + 1))
        yield f"| {' | '.join(cells[: len(headings)])} |"
    if reasons := list(_reasons(outcomes)):
        yield ""
        yield from reasons


def _row(outcome: Outcome) -> tuple[str, ...]:
    errors = [part.max_relative_error for part in outcome.modules if part.max_relative_error is not None]
    return (
        outcome.target,
        _precision(outcome),
        outcome.format,
        stage_text(outcome.exported),
        stage_text(outcome.compiled),
        stage_text(outcome.executed),
        f"{max(errors):.2g}" if errors else "-",
        _accuracy(outcome),
        format_size(outcome.bundle_bytes) if outcome.bundle_bytes else "-",
        format_size(outcome.peak_rss_bytes) if outcome.peak_rss_bytes else "-",
    )


def _precision(outcome: Outcome) -> str:
    """Return what was asked for; with what `auto` came to."""
    if outcome.precision != "auto" or not outcome.modules:
        return outcome.precision
    chosen = (f"{part.name} {part.precision}" for part in outcome.modules if not part.is_table)
    return f"auto: {', '.join(chosen)}"


def stage_text(stage: Stage) -> str:
    """Return a step's cell: by or on what it was done, or how it ended."""
    if stage.state == "done":
        return stage.text or "yes"
    return "-" if stage.state == "not needed" else f"**{stage.state}**"


def _accuracy(outcome: Outcome) -> str:
    if not outcome.metrics:
        return stage_text(outcome.validated)
    metric = next((metric for metric in outcome.metrics if metric.name == TELLING), outcome.metrics[0])
    failed = "**failed**: " if outcome.validated.state == "failed" else ""
    value = f"{metric.artifact:.2%}" if metric.reference <= 1 else f"{metric.artifact:.4g}"
    drop = f"{metric.drop:.2%}" if metric.limit <= 1 else f"{metric.drop:.3g}"
    return f"{failed}{metric.name} {value}, drop {drop} ({outcome.samples})"


def _reasons(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield why steps failed or were not run, each reason once with its cells."""
    found: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        for field, verb in VERBS.items():
            stage: Stage = getattr(outcome, field)
            if stage.state in ("failed", "not run") and stage.text:
                cell = f"{outcome.target} {outcome.precision} {outcome.format}"
                found.setdefault((f"{verb} {stage.state}", stage.text), []).append(cell)
    for (step, text), cells in found.items():
        yield f"- {', '.join(cells)}: {step}: {_plain(text)}"


def _plain(text: str) -> str:
    """Escape what Markdown would take for a mark."""
    return text.replace("*", r"\*").replace("<", r"\<")


def _versions(environments: Sequence[dict[str, str]]) -> Iterator[str]:
    for number, environment in enumerate(environments, start=1):
        listed = ", ".join(f"{name} {environment[name]}" for name in sorted(environment, key=str.lower))
        yield f"{number}. {listed}"
