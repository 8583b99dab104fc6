"""Run the original over a calibration set, a segment at a time, and keep what the encoders take of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.calibrate.histogram import least_squares
from edgeglm.export.calibrate.learn import Learned, Learner
from edgeglm.export.calibrate.observe import Observed
from edgeglm.export.calibrate.products import original_weights
from edgeglm.export.calibrate.walk import Walk, cut_into_groups
from edgeglm.export.families.registry import image_config
from edgeglm.export.prepare.types import Calibration, Opened, Prepared
from edgeglm.export.prove.probes import Example, Passage, Prompt, example_prompts
from edgeglm.export.quantize.rounded import KEPT_BYTES
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.samples.windows import cut_windows, read_tokenizer
from edgeglm.export.write.disk import explained

# Read of a set: energies change by less than their own noise with more.
SAMPLES = 32
# Small screens are read up to so many, of so many pixels together: they have few tokens.
MANY, PIXELS = 64, 16 << 20
# What a token of an answer counts, beside those of a prompt.
ANSWERED = 4.0
# With less, what a channel never showed would count as nothing.
FEWEST = 4
# Behind those, kept for the bundle's self-test.
HELD_OUT = 4
# Tokens of a window of text, and those of its end that a sensitivity compares.
PASSAGE, COMPARED = 128, 16
# What errors are fed back by, in the folder of a calibration.
FEEDBACK = "feedback.bin"
# Input channels of the widest matrix that feeds errors back, where memory does not matter.
MOST = 1 << 30
REMEDY = "write it as docs/validate.md says"


def read_calibration(file: Path, checkpoint: Path) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return the first samples of a calibration set, or windows of a text, and a few for the bundle's self-test.

    Those are the next ones, or the last where the set has no more.

    Raises:
        UsageError: It is empty, too small, or holds what is no sample; the checkpoint has no tokenizer for a text.
    """
    is_text = file.suffix != ".jsonl"
    count = SAMPLES if is_text else _count_screens(file)
    total = count + HELD_OUT
    found = _passages(file, checkpoint, total) if is_text else read_screens(file, total)
    return found[:count], found[count:] or found[-HELD_OUT:]


def _count_screens(file: Path) -> int:
    """Return how many screens are read of a set, by the size of its first."""
    (first, *_) = read_screens(file, FEWEST)
    return min(MANY, max(SAMPLES, PIXELS // math.prod(first.image.size)))


def _passages(file: Path, checkpoint: Path, limit: int) -> list[Passage]:
    source = checkpoint / "tokenizer.json"
    if not source.is_file():
        raise UsageError(checkpoint, "has no tokenizer.json, and reads no text", "give a checkpoint that has one")
    windows = cut_windows(read_tokenizer(source), file, PASSAGE, PASSAGE, limit)
    answer = min(COMPARED, windows.count)
    return [Passage(tuple(sequence), answer) for sequence in windows.sequences.tolist()]


def read_screens(file: Path, limit: int = SAMPLES) -> list[Sample]:
    """Return the first samples of a calibration set. Raises UsageError."""
    try:
        samples = list(read_samples(file, limit))
    except DamagedFileError as error:
        raise UsageError(error.what, error.why, error.remedy) from error
    if len(samples) < FEWEST:
        raise UsageError(file, f"holds {len(samples)} samples", f"calibrate with {FEWEST} or more")
    for number, sample in enumerate(samples, start=1):
        if not all(map(math.isfinite, sample.expected.box or ())):
            raise UsageError(f"{file}:{number}", "has a box that is no number", REMEDY)
    return samples


def samples_bytes(opened: Opened, examples: Sequence[Example]) -> int:
    """Return the memory of samples that pass through the model: pictures, patches and activations."""
    samples = [example for example in examples if isinstance(example, Sample)]
    if not samples:
        return KEPT_BYTES if examples else 0
    rows, columns = opened.probe.grid or (0, 0)
    vision = image_config(opened.checkpoint.config) or {}
    sizes = (vision.get("patch_size", 14) ** 2, vision.get("in_channels", 3), vision.get("temporal_patch_size", 2))
    patches: int = 4 * rows * columns * math.prod(sizes)
    return KEPT_BYTES + sum(3 * math.prod(sample.image.size) + 2 * patches for sample in samples)


def observe(
    prepared: Prepared,
    examples: Sequence[Example],
    work: Path | None = None,
    widest: int = MOST,
    *,
    in_bf16: bool = False,
) -> tuple[Observed, Learned]:
    """Return what every weight is multiplied by on the samples, and what is learnt of it.

    Args:
        prepared: The export.
        examples: The samples.
        work: See `calibrate`, as `widest` and `in_bf16`.
        widest: See `work`.
        in_bf16: See `work`.

    Raises:
        UnsupportedError: The model takes no pictures, and the samples are screens, or the other way round.
        UsageError: Something in the model is not finite on them.
    """
    check_examples(prepared.opened, examples)
    source, prompts = replace(prepared.checkpoint, keep_pages=True), example_prompts(prepared, examples)
    choices = {module.choice.name: module.choice for module in prepared.modules}
    file, equalizes = work / FEEDBACK if work else None, prepared.request.equalizes
    learner = Learner(choices, source, file, token_weights(prompts), widest, equalizes=equalizes)
    try:
        with (
            np.errstate(all="ignore"),
            explained(work or prepared.checkpoint.folder, work or prepared.checkpoint.folder),
            original_weights(source, in_bf16=in_bf16) as weights,
        ):
            observed = Observed(weights, learner.see, learner.counts)
            for _ in Walk(prepared, prompts, observed, {}, learner).logits():
                pass
    except ValueError as error:
        raise UsageError("--calibration", str(error), "check the model and the samples") from error
    return observed, learner.learned


def token_weights(prompts: Sequence[Prompt]) -> list[Floats]:
    """Return by group of prompts what each token counts: those of the answer to a picture are what is compared."""
    weights = [np.ones(len(prompt.tokens), np.float32) for prompt in prompts]
    for prompt, counts in zip(prompts, weights, strict=True):
        counts[len(counts) - prompt.answer :] = 1 if prompt.patches is None else ANSWERED
    return [np.concatenate(weights[group]) for group in cut_into_groups(prompts)]


def check_examples(opened: Opened, examples: Sequence[Example]) -> None:
    """Check that samples are what the model takes. Raises UnsupportedError."""
    sees, screens = opened.processor is not None, isinstance(examples[0], Sample)
    if screens and not sees:
        raise UnsupportedError("--calibration", f"{opened.request.name} takes no images", "give a text")
    if sees and not screens:
        raise UnsupportedError("--calibration", f"{opened.request.name} takes images", "give samples (.jsonl)")


def calibrate(
    prepared: Prepared,
    examples: Sequence[Example],
    work: Path | None = None,
    widest: int = MOST,
    *,
    in_bf16: bool = False,
) -> Calibration:
    """Return what the encoders take of `observe`, whose errors it raises, and the hash of what the model was fed.

    Args:
        prepared: The export.
        examples: The samples.
        work: A folder for what INT4 feeds errors back by, as long as weights are encoded; None to do without.
        widest: Most input channels of a matrix that has it.
        in_bf16: Whether memory has room for the worker of `products.original_weights`.
    """
    observed, learned = observe(prepared, examples, work, widest, in_bf16=in_bf16)
    ranges = {name: least_squares(seen) for name, seen in observed.histograms.items()} | learned.ranges
    screens = [example for example in examples if isinstance(example, Sample)]
    return Calibration(
        examples_hash(examples),
        learned.inputs,
        ranges,
        screens,
        divisors=learned.divisors,
        widest=widest if work else 0,
        errors=tuple(learned.errors.values()),
        notes=tuple(learned.notes()),
    )


def examples_hash(examples: Sequence[Example]) -> str:
    """Hash the samples that the model is fed."""
    digest = hashlib.sha256()
    for example in examples:
        if isinstance(example, Passage):
            digest.update(repr(example.tokens).encode())
            continue
        digest.update(f"{example.messages}\0{example.expected.response}\0{example.image.size}\0".encode())
        digest.update(hashlib.sha256(example.image.tobytes()).digest())
    return digest.hexdigest()
