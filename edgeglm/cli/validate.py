"""``edgeglm validate``: whether a bundle does its task as well as the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from edgeglm.bundle import Bundle, load_bundle, verify_bundle
from edgeglm.cli.budget import max_ram_option, parse_budget
from edgeglm.cli.output import json_option, print_json
from edgeglm.errors import AccuracyError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.demo.samples import DATA, read_samples
from edgeglm.export.locate import DEMO, DEMO_NAME, locate
from edgeglm.export.metric import Metric
from edgeglm.export.pipeline.measured import Found, OnScreens, OnText, write_report
from edgeglm.export.plan import check_peak
from edgeglm.export.validation.agent import compare_agents
from edgeglm.export.validation.answers import artifact_answers, as_text, drafter, reference_answers, where_run
from edgeglm.export.validation.memory import BASE_BYTES, is_streamed, streamed_bytes, whole_bytes
from edgeglm.export.validation.proof import proof_bytes, prove_pictures, prove_reading
from edgeglm.export.validation.text import artifact_scores, compare_texts, reference_scores
from edgeglm.export.validation.windows import read_windows
from edgeglm.manifest import Manifest
from edgeglm.runtimes.progress import progress_line
from edgeglm.units import format_size, parse_percent

# What a file of samples is called; any other is a text.
SAMPLES = ".jsonl"
HEADINGS = ("METRIC", "SAMPLES", "REFERENCE", "ARTIFACT", "DROP", "95% OF IT", "LIMIT", "VERDICT")


@click.command("validate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--accuracy-drop", default="2%", show_default=True, metavar="PCT", help="Maximum accuracy drop.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Samples (.jsonl) or a text (default: the demo's held-out screenshots, for the demo).",
)
@click.option("--reference", metavar="MODEL", help="The original (default: the demo, for the demo).")
@click.option("--adapter", metavar="DIR", help="The adapter that the bundle was exported with.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N samples, or windows of text.")
@max_ram_option
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as an HTML page.")
@json_option
def command(
    bundle: Path,
    accuracy_drop: str,
    data: Path | None,
    reference: str | None,
    adapter: str | None,
    limit: int | None,
    max_ram: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Compare a bundle with the original on its task; fail if accuracy drops too far."""
    allowed = parse_percent(accuracy_drop)
    budget = parse_budget(max_ram)
    if report and not report.absolute().parent.is_dir():
        raise UsageError(report, "its folder is not there", "make it, or give another file")
    opened = load_bundle(bundle)
    verify_bundle(opened)
    original, file = _original(opened.manifest, reference, adapter), _data(opened.manifest, data)
    loaded = min(opened.manifest.predicted.device_peak_rss_bytes.values())
    peak = max(streamed_bytes(original), BASE_BYTES + loaded)
    check_peak(peak, budget, f"to compare {opened.manifest.model.name} with its original")
    whole, on_screens = whole_bytes(original), file.suffix == SAMPLES
    streamed = not on_screens or is_streamed(original, budget)
    proven = _prove(opened, original, budget, streamed=streamed)
    if on_screens:
        found = _on_screens(opened, original, file, limit, allowed, budget)
    else:
        found = _on_text(opened, original, file, limit, allowed)
    metrics = found.metrics
    ran = found.ran if isinstance(found, OnScreens) else {}
    if as_json:
        how = {"streamed": streamed, "proven": proven, "ran": dict(ran)}
        print_json(_summary(bundle, found.samples, metrics) | how)
    else:
        npu = any(module.placement == "npu" for module in opened.manifest.modules)
        more = [f"{name:<9}ran on {engine}" for name, engine in ran.items()] if npu else []
        if not proven:
            why = f"it would take {format_size(proof_bytes(original))}"
            more.append(f"original read as edgeglm reads it: transformers' own loading was not compared, since {why}")
        if on_screens and streamed:
            why = f"the whole would take {format_size(whole)}" if original.is_plain else "its weights are not plain"
            more.append(f"original streamed, since {why}: the bundle drafted its answers, and it corrected them")
        click.echo("\n".join([*_lines(metrics), *(["", *more] if more else [])]))
    if report:
        write_report(report, opened, original.total_bytes, found)
    # A failure says more than an unclear verdict.
    for metric in sorted(metrics, key=lambda each: each.verdict == "unclear"):
        if not metric.passed:
            raise AccuracyError(bundle, _why(metric), _remedy(metric))


def _prove(bundle: Bundle, original: Checkpoint, budget: int, *, streamed: bool) -> bool:
    """Return whether the original is transformers' own: it is as a whole, and streamed if memory allows to prove it."""
    if vision := bundle.manifest.model.vision:
        prove_pictures(bundle.folder, vision, original)
    if streamed and proof_bytes(original) > budget:
        return False
    if streamed:
        prove_reading(original)
    return True


def _on_screens(
    bundle: Bundle, original: Checkpoint, file: Path, limit: int | None, allowed: float, budget: int
) -> Found:
    if bundle.manifest.model.vision is None:
        raise UnsupportedError(bundle.manifest.model.name, "takes no images", "validate it on a text: --data FILE.txt")
    samples = list(read_samples(file, limit))
    with progress_line("the bundle answers") as show:
        answers = artifact_answers(bundle, samples, show=show)
    with progress_line("the original answers") as show:
        theirs = reference_answers(original, samples, budget, drafter(bundle, answers), show)
    ours = as_text(bundle, answers)
    metrics = compare_agents([sample.expected for sample in samples], theirs, ours, allowed)
    return OnScreens(metrics, samples, theirs, ours, where_run(bundle, len(samples)))


def _on_text(bundle: Bundle, original: Checkpoint, file: Path, limit: int | None, allowed: float) -> Found:
    windows = read_windows(bundle, file, limit)
    theirs = reference_scores(original, windows)
    with progress_line("the bundle reads") as show:
        ours = artifact_scores(bundle, windows, show)
    return OnText(compare_texts(theirs, ours, allowed), windows, theirs, ours)


def _original(manifest: Manifest, reference: str | None, adapter: str | None) -> Checkpoint:
    if reference is None and manifest.model.name != DEMO_NAME:
        raise UsageError("--reference", f"is needed for {manifest.model.name}", "give the checkpoint it was made from")
    wanted = manifest.provenance.options.get("adapter_sha256")
    if wanted and adapter is None:
        raise UsageError("--adapter", "is needed: the bundle was exported with an adapter", "give its folder")
    folder = DEMO if reference is None else locate(reference)[0]
    checkpoint = open_checkpoint(folder, None if adapter is None else locate(adapter)[0])
    if wanted and checkpoint.adapter_sha256 != wanted:
        raise UsageError(
            f"--adapter {adapter}", "is not the adapter that the bundle was exported with", "give that one"
        )
    checkpoint.check_architecture([manifest.model.architecture])
    return checkpoint


def _data(manifest: Manifest, data: Path | None) -> Path:
    if data is not None:
        return data
    if manifest.model.name != DEMO_NAME:
        why = f"is needed for {manifest.model.name}"
        raise UsageError("--data", why, f"give samples with targets ({SAMPLES}), or a text")
    return DATA / "evaluation.jsonl"


def _why(metric: Metric) -> str:
    drop, limit = metric.change(metric.drop), metric.change(metric.limit)
    if metric.verdict == "fail":
        return f"{metric.name} drops by {drop}, more than {limit}"
    high = metric.change(metric.high)
    return f"{metric.samples} samples are too few to tell: {metric.name} drops by {drop}, but it may be {high}"


def _remedy(metric: Metric) -> str:
    if metric.verdict == "fail":
        return "export it in a higher precision, or allow more with --accuracy-drop"
    return f"give about {metric.needed} samples"


def _summary(bundle: Path, samples: int, metrics: Sequence[Metric]) -> dict[str, object]:
    return {
        "bundle": str(bundle),
        "samples": samples,
        "metrics": [
            {
                "name": metric.name,
                "samples": metric.samples,
                "reference": metric.reference,
                "artifact": metric.artifact,
                "drop": metric.drop,
                "drop_interval": [metric.low, metric.high],
                "limit": metric.limit,
                "verdict": metric.verdict,
                "passed": metric.passed,
                "samples_needed": metric.needed,
            }
            for metric in metrics
        ],
        "passed": all(metric.passed for metric in metrics),
    }


def _lines(metrics: Sequence[Metric]) -> Iterator[str]:
    rows = [HEADINGS, *map(_row, metrics)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(metric: Metric) -> tuple[str, ...]:
    interval = f"{metric.change(metric.low)} to {metric.change(metric.high)}"
    both, drop = (metric.value(metric.reference), metric.value(metric.artifact)), metric.change(metric.drop)
    return metric.name, str(metric.samples), *both, drop, interval, metric.change(metric.limit), metric.verdict
