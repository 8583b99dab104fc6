"""A bundle and its original on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeglm.bundle import Bundle, load_bundle, verify_bundle
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.lineage import ORIGINAL, ORIGINAL_SHA256, check_original, find_original
from edgeglm.export.checkpoint.locate import DEMO, DEMO_NAME, locate
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate.accuracy_report import Found, OnScreens, OnText, write_report
from edgeglm.export.evaluate.answers import artifact_answers, drafter, reference_answers, where_run
from edgeglm.export.evaluate.original.memory import base_bytes, is_streamed, streamed_bytes, whole_bytes
from edgeglm.export.evaluate.original.proven import check_pictures, unproven_bytes
from edgeglm.export.evaluate.tasks.agent import compare_agents
from edgeglm.export.evaluate.tasks.text import artifact_scores, compare_texts, reference_scores
from edgeglm.export.predict.peaks import check_peak
from edgeglm.export.requests import SAMPLES, Progress, Show, ValidateRequest, ValidateResult
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.export.samples.windows import read_windows
from edgeglm.manifest import Manifest
from edgeglm.runtimes.inputs.masks import Mask
from edgeglm.units import format_size


def compare(request: ValidateRequest, budget: int, show: Show) -> ValidateResult:
    """Measure a bundle, and write the page that is asked for.

    Args:
        request: What is compared, on what.
        budget: Bytes of memory.
        show: Is told which step is at work, and which share of it is done.

    Raises:
        EdgeglmError: The bundle, the original or the samples cannot be used, or memory is too short.
    """
    if request.report and not request.report.absolute().parent.is_dir():
        raise UsageError(request.report, "its folder is not there", "make it, or give another file")
    bundle = load_bundle(request.bundle)
    verify_bundle(bundle)
    original = _original(bundle.manifest, request.reference, request.adapter)
    file = _data(bundle.manifest, request.data)
    loaded = min(bundle.manifest.predicted.device_peak_rss_bytes.values())
    peak = max(streamed_bytes(original), base_bytes() + loaded)
    check_peak(peak, budget, f"to compare {bundle.manifest.model.name} with its original")
    on_screens = file.suffix == SAMPLES
    if request.masks and not on_screens:
        raise UsageError("--mask", "is for screens, and the data is a text", "leave it out")
    streamed = not on_screens or is_streamed(original, budget)
    if vision := bundle.manifest.model.vision:
        check_pictures(bundle.folder, vision, original)
    # As a whole, it is transformers' own.
    missing = unproven_bytes(original, budget) if streamed else 0
    if on_screens:
        found = _on_screens(bundle, original, file, request, budget, show)
    else:
        found = _on_text(bundle, original, file, request, show)
    if request.report:
        write_report(request.report, bundle, original.total_bytes, found)
    return ValidateResult(
        bundle=request.bundle,
        samples=found.samples,
        metrics=found.metrics,
        streamed=_why_streamed(original) if streamed else None,
        unproven=f"it would take {format_size(missing)}" if missing else None,
        ran=found.ran if isinstance(found, OnScreens) else {},
    )


def _why_streamed(original: Checkpoint) -> str:
    if not original.is_plain:
        return "its weights are not plain"
    return f"the whole would take {format_size(whole_bytes(original))}"


def _share(show: Show, stage: str) -> Callable[[float], None]:
    return lambda done: show(Progress(stage, done))


def _on_screens(
    bundle: Bundle, original: Checkpoint, file: Path, request: ValidateRequest, budget: int, show: Show
) -> Found:
    if bundle.manifest.model.vision is None:
        raise UnsupportedError(bundle.manifest.model.name, "takes no images", "validate it on a text: --data FILE.txt")
    samples = list(read_samples(file, request.limit))
    masks = [Mask(*mask) for mask in request.masks]
    answers = artifact_answers(bundle, samples, show=_share(show, "the bundle answers"), masks=masks)
    answered = _share(show, "the original answers")
    drafts = drafter(bundle, [answer.tokens for answer in answers])
    theirs = reference_answers(original, samples, budget, drafts, answered)
    ours = [answer.text for answer in answers]
    metrics = compare_agents([sample.expected for sample in samples], theirs, ours, request.accuracy_drop)
    return OnScreens(metrics, samples, theirs, ours, where_run(bundle, len(samples)))


def _on_text(bundle: Bundle, original: Checkpoint, file: Path, request: ValidateRequest, show: Show) -> Found:
    windows = read_windows(bundle, file, request.limit)
    theirs = reference_scores(original, windows)
    ours = artifact_scores(bundle, windows, _share(show, "the bundle reads"))
    return OnText(compare_texts(theirs, ours, request.accuracy_drop), windows, theirs, ours)


def _original(manifest: Manifest, reference: str | None, adapter: str | None) -> Checkpoint:
    if reference is None and not _is_of_demo(manifest):
        remedy = "give the checkpoint it was made from"
        raise UsageError("--reference", f"is needed for {manifest.model.name}", remedy)
    wanted = manifest.provenance.options.get("adapter_sha256")
    if wanted and adapter is None:
        raise UsageError("--adapter", "is needed: the bundle was exported with an adapter", "give its folder")
    folder = DEMO if reference is None else find_original(locate(reference)[0])
    check_original(folder, manifest.provenance.options.get(ORIGINAL_SHA256))
    checkpoint = open_checkpoint(folder, None if adapter is None else locate(adapter)[0])
    if wanted and checkpoint.adapter_sha256 != wanted:
        raise UsageError(
            f"--adapter {adapter}", "is not the adapter that the bundle was exported with", "give that one"
        )
    if checkpoint.architecture != manifest.model.architecture:
        why = f"is a {shown(checkpoint.architecture)}, and the bundle was made of a {manifest.model.architecture}"
        raise UnsupportedError(f"--reference {folder}", why, "give the checkpoint it was made from")
    return checkpoint


def _is_of_demo(manifest: Manifest) -> bool:
    """Return whether the original is the demo, which a model may have been compressed from."""
    return manifest.provenance.options.get(ORIGINAL, manifest.model.name) == DEMO_NAME


def _data(manifest: Manifest, data: Path | None) -> Path:
    if data is not None:
        return data
    if not _is_of_demo(manifest):
        why = f"is needed for {manifest.model.name}"
        raise UsageError("--data", why, f"give samples with targets ({SAMPLES}), or a text")
    return DEMO_DATA.evaluation
