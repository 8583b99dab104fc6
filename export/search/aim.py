"""The goal of a search, what it chooses among, and what a study of it is of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from edgeglm.engines import ENGINES, USUAL_FORMAT
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.burn.figures import measure_there
from edgeglm.export.calibrate.calibrator import examples_hash
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.lineage import weights_key
from edgeglm.export.evaluate.speed import MEASURER, SpeedRequest
from edgeglm.export.pipeline.job import Job
from edgeglm.export.pipeline.ladder import Measure
from edgeglm.export.prefix.lengths import prefix_lengths
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import LIBRARIES, Opened, Request
from edgeglm.export.requests import SearchRequest, Switch
from edgeglm.export.search.candidates import find_candidates
from edgeglm.export.search.knobs import STEPS
from edgeglm.roles import DECODER
from edgeglm.suggest import nearest_name

Goal = Literal["size", "latency", "memory"]
# Samples, or windows of a text, that tell whether a bundle fails for sure.
EARLY = 128


@dataclass(frozen=True)
class Aim:
    """The goal of a search.

    Args:
        goal: The figure that is to be least.
        trials: Bundles that are measured at most.
        study: The file that the study is kept in.
        identity: Of the model, the device, the samples and the limit: a study of others is refused.
        early: Measures a bundle on few samples; None to measure on all at once.
        figures: Measures a bundle by goal; a search for size does without.
        equalization: What it can be.
        models: The folders of smaller checkpoints by name, to choose from beside MODEL.
        formats: What those of modules can be.
    """

    goal: Goal
    trials: int
    study: Path
    identity: str
    early: Measure | None
    figures: Callable[[Path], dict[str, float]]
    equalization: tuple[Switch, ...] = ("on",)
    models: Mapping[str, Path] = field(default_factory=dict)
    formats: tuple[str, ...] = (USUAL_FORMAT,)

    @property
    def options(self) -> dict[str, Sequence[str]]:
        """The values that options of a `Setting` can have, by name."""
        return {"equalization": self.equalization, "model": ["", *self.models]}


def aim_of(job: Job, request: SearchRequest) -> tuple[Job, Aim]:
    """Return a job that begins with all parts in their smallest precision, and its aim. Raises as `open_export`."""
    assert job.gate
    if "off" in request.equalizations and not job.samples:
        why = "has nothing to switch off: a calibration moves scales, and there is none"
        raise UsageError("--equalization off", why, "give --calibration FILE, or leave it out")
    asked = replace(job.request, precision=STEPS[USUAL_FORMAT][0])
    try:
        opened = open_export(asked)
    except UnsupportedError:  # what an NPU computes, for one, has a precision of its own
        asked = job.request
        opened = open_export(asked)
    _check_formats(asked, request.formats)
    gate, models = job.gate, find_candidates(job, asked, request.also)
    aim = Aim(
        goal=request.goal,
        trials=request.trials,
        study=study_of(job, request),
        identity=_identity(opened, job, request, models),
        early=None if request.limit and request.limit <= EARLY else lambda bundle: gate.metrics(bundle, EARLY),
        figures=partial(measure_there, request.via, request.python) if request.via else _figures,
        equalization=request.equalizations,
        models=models,
        formats=request.formats,
    )
    return replace(job, request=asked), aim


def _check_formats(asked: Request, formats: Sequence[str]) -> None:
    """Check that the device runs the formats, of the decoder at least, and that its engine can ship prefixes.

    Raises:
        UsageError, UnsupportedError: Of a format.
    """
    for name in formats:
        if name not in STEPS:
            raise UsageError(f"--formats {name}", "is no format", nearest_name(name, STEPS))
        prefix_lengths(open_export(replace(asked, precision=f"{DECODER}=int8", format=f"{DECODER}={name}")))


def study_of(job: Job, request: SearchRequest) -> Path:
    """Return the file of a search's study."""
    return request.study or job.folder.with_name(f"{job.folder.name}.study")


def _identity(opened: Opened, job: Job, request: SearchRequest, models: Mapping[str, Path]) -> str:
    """Return a hash of what a study is of: the weights, the device, the samples, the limit, the goal and the versions.

    Unlike `edgeglm.export.prepare.identity`, which tells files of one machine apart, it is the same for a copy.
    """
    made_by = [name for engine in ENGINES.values() if engine.reads in request.formats for name in engine.made_by]
    versions = [(name, metadata.version(name)) for name in dict.fromkeys([*LIBRARIES, *made_by])]
    digest = hashlib.sha256(repr(versions).encode())
    for folder in (opened.checkpoint.folder, *models.values()):
        digest.update(weights_key(open_checkpoint(folder)).encode())
    bundle = (request.context, request.image_sizes, request.prefixes, request.kv)
    asked = (request.goal, request.accuracy_drop, request.via, request.limit)
    choices = (request.equalizations, request.formats, *models)
    digest.update(repr((job.request.profile, opened.checkpoint.adapter_sha256, bundle, asked, choices)).encode())
    digest.update(examples_hash(job.samples).encode())
    return digest.hexdigest()


def _figures(bundle: Path) -> dict[str, float]:
    speed = MEASURER.run(SpeedRequest(bundle), "measuring")
    return {"latency": speed.answer_ms, "memory": float(speed.peak_rss_bytes)}
