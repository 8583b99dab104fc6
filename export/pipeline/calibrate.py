"""Run the original over a calibration set, a segment at a time, and keep what the encoders take of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.calibration.histogram import least_squares
from edgeglm.export.calibration.observe import Observed
from edgeglm.export.demo.samples import Sample, read_samples
from edgeglm.export.pipeline.prepare import Calibration, Opened, Prepared
from edgeglm.export.pipeline.probes import sample_prompts
from edgeglm.export.pipeline.walk import Walk
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.export.quantize.rounded import KEPT_BYTES

# Read of a set: energies change by less than their own noise with more.
SAMPLES = 32
# With less, what a channel never showed would count as nothing.
FEWEST = 4
REMEDY = "write it as docs/demo-model.md shows"


def read_calibration(file: Path) -> list[Sample]:
    """The first samples of a calibration set.

    Raises:
        UsageError: It is empty, too small, or holds what is no sample.
    """
    try:
        samples = list(read_samples(file, SAMPLES))
    except DamagedFileError as error:
        raise UsageError(error.what, error.why, error.remedy) from error
    if len(samples) < FEWEST:
        raise UsageError(file, f"holds {len(samples)} samples", f"calibrate with {FEWEST} or more")
    for number, sample in enumerate(samples, start=1):
        if not all(map(math.isfinite, sample.expected.box or ())):
            raise UsageError(f"{file}:{number}", "has a box that is no number", REMEDY)
    return samples


def samples_bytes(opened: Opened, samples: Sequence[Sample]) -> int:
    """What samples take while they pass through the model: pictures, patches, and what becomes of them on the way."""
    if not samples:
        return 0
    rows, columns = opened.probe.grid or (0, 0)
    vision = opened.checkpoint.config.get("vision_config") or {}
    sizes = (vision.get("patch_size", 14) ** 2, vision.get("in_channels", 3), vision.get("temporal_patch_size", 2))
    patches: int = 4 * rows * columns * math.prod(sizes)
    return KEPT_BYTES + sum(3 * math.prod(sample.image.size) + 2 * patches for sample in samples)


def observe(prepared: Prepared, samples: Sequence[Sample]) -> Observed:
    """What every weight is multiplied by on the samples.

    Raises:
        UnsupportedError: The model takes no pictures, and the samples are screens.
        UsageError: Something in the model is not finite on them.
    """
    if prepared.model.vision is None:
        raise UnsupportedError("--calibration", f"{prepared.request.name} sees no pictures", "leave it out")
    observed = Observed(OriginalWeights(replace(prepared.checkpoint, keep_pages=True)))
    prompts = sample_prompts(prepared, samples, answered=True)
    try:
        with np.errstate(all="ignore"):  # what is not finite is said below
            Walk(prepared, prompts, observed, {}).logits()
    except ValueError as error:
        raise UsageError("--calibration", str(error), "check the model and the samples") from error
    return observed


def calibrate(prepared: Prepared, samples: Sequence[Sample]) -> Calibration:
    """What the encoders take of `observe`, whose errors it raises, and the hash of what the model was fed."""
    observed = observe(prepared, samples)
    ranges = {name: least_squares(seen) for name, seen in observed.histograms.items()}
    return Calibration(samples_hash(samples), observed.energies(), ranges)


def samples_hash(samples: Sequence[Sample]) -> str:
    """Of what the model is fed."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.prompt}\0{sample.expected.response}\0{sample.image.size}\0".encode())
        digest.update(hashlib.sha256(sample.image.tobytes()).digest())
    return digest.hexdigest()
