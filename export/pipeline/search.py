"""Search for the best bundle that passes: a study of Optuna's over few knobs, which ends in the gate as a ladder does.

The knobs of a module are the precision of its parts, and how many of them, the most sensitive first, take one step up.
A bundle that cannot be better than the best one is not made, and one that fails on few samples is not measured further.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.calibrate.calibrator import examples_hash
from edgeglm.export.evaluate.speed import MEASURER, SpeedRequest
from edgeglm.export.pipeline.job import Job
from edgeglm.export.pipeline.knobs import STEPS, Knobs
from edgeglm.export.pipeline.ladder import Ladder, Measure, excess, precisions, spell, worst
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Opened, Prepared
from edgeglm.export.requests import SearchRequest
from edgeglm.manifest import Metric, Rung

Goal = Literal["size", "latency", "memory"]
# Knobs are asked for so many times as often as a bundle is measured, before the search ends early.
ASKED = 50
SEED, NAME = 0, "edgeglm"
# What a goal is measured by; the size of a bundle is known.
FIGURES = {"latency": "answer_ms", "memory": "peak_rss_bytes"}
# Samples, or windows of a text, that tell whether a bundle fails for sure; bytes of each end of a file that are hashed.
EARLY, END = 128, 1 << 20
# The excess of what could not be measured.
REFUSED = 1e9


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
    """

    goal: Goal
    trials: int
    study: Path
    identity: str
    early: Measure | None
    figures: Callable[[Path], dict[str, float]]


class Lock:
    """A lock of Optuna's kind, that the kernel takes back from a process that dies."""

    def __init__(self, file: Path) -> None:
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)

    def acquire(self) -> bool:
        """Wait for it."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it back."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)


def open_study(file: Path, identity: str) -> optuna.Study:
    """Return the study of a file, which is made where there is none.

    Args:
        file: A journal.
        identity: Of what it must be.

    Raises:
        UsageError: It is of something else.
        DamagedFileError: It is no study.
        OSError: It cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = JournalStorage(JournalFileBackend(str(file), cast(Any, Lock(file))))
        sampler = optuna.samplers.TPESampler(seed=SEED, multivariate=True, n_startup_trials=6)
        study = optuna.create_study(
            storage=storage, sampler=sampler, study_name=NAME, directions=["minimize"] * 2, load_if_exists=True
        )
        known = study.user_attrs.get("identity")
    except OSError:
        raise
    except Exception as error:  # of what the file holds: JSON's, keys', Optuna's own
        raise DamagedFileError(file, "is no study", "remove it, or name another by --study") from error
    if known is None and not study.trials:
        study.set_user_attr("identity", identity)
    elif known != identity:
        why = "is a study of another model, device, limit, goal, or of other samples"
        raise UsageError(file, why, "name another file by --study")
    return study


def searching(job: Job, request: SearchRequest) -> Job:
    """Return a job that searches for its precision. Raises as `open_export`."""
    assert job.gate
    asked = replace(job.request, precision=STEPS[0])
    try:
        opened = open_export(asked)
    except UnsupportedError:  # what an NPU computes, for one, has a precision of its own
        asked = job.request
        opened = open_export(asked)
    study = request.study or job.folder.with_name(f"{job.folder.name}.study")
    gate = job.gate
    aim = Aim(
        goal=request.goal,
        trials=request.trials,
        study=study,
        identity=_identity(opened, job, request),
        early=lambda bundle: gate.metrics(bundle, EARLY),
        figures=_figures,
    )
    return replace(job, request=asked, climber=partial(Search, aim=aim))


def _identity(opened: Opened, job: Job, request: SearchRequest) -> str:
    """Return a hash of what a study is of: the weights by their sizes and ends, the device, samples, limit and goal.

    Unlike `edgeglm.export.prepare.identity`, which tells files of one machine apart, it is the same for a copy.
    """
    digest = hashlib.sha256()
    folder = opened.checkpoint.folder
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        size = file.stat().st_size
        with open(file, "rb") as source:
            digest.update(f"{file.name}\0{size}\0".encode() + source.read(END))
            source.seek(max(0, size - END))
            digest.update(source.read(END))
    options = (request.goal, request.accuracy_drop, request.context, request.image_sizes, request.prefixes, request.kv)
    digest.update(repr((job.request.profile, opened.checkpoint.adapter_sha256, options)).encode())
    digest.update(examples_hash(job.samples).encode())
    return digest.hexdigest()


def _figures(bundle: Path) -> dict[str, float]:
    speed = MEASURER.run(SpeedRequest(bundle), "measuring")
    return {"latency": speed.answer_ms, "memory": float(speed.peak_rss_bytes)}


@dataclass
class Search(Ladder):
    """Rungs in the order in which a study tried them."""

    aim: Aim = field(kw_only=True)
    skipped: set[str] = field(default_factory=set)

    @property
    def best(self) -> Rung | None:
        """The one that passes with the least figure."""
        return min((rung for rung in self.rungs if rung.passed), key=self._figure, default=None)

    def _figure(self, rung: Rung) -> float:
        return rung.figures[FIGURES[self.aim.goal]] if self.aim.goal in FIGURES else float(rung.bundle_bytes)

    @property
    def precision(self) -> str:
        """The precision of the best attempt."""
        assert self.best
        return self.best.precision

    def climb(self) -> None:
        """Try what the study proposes, go on where it was left, and remember every attempt in it.

        Raises:
            UsageError: The study is another one's.
            DamagedFileError: It is no study.
        """
        study = open_study(self.aim.study, self.aim.identity)
        self._remember(study)
        lowest = precisions(self._prepare(self.request.precision))
        knobs = Knobs.of(lowest, self._order(lowest), self._is_possible)
        for first in knobs.first():
            study.enqueue_trial(first, skip_if_exists=True)
        for _ in range(ASKED * self.aim.trials):
            if len(self.rungs) >= self.aim.trials:
                break
            self._attempt(study, knobs)

    def _attempt(self, study: optuna.Study, knobs: Knobs) -> None:
        trial = study.ask(knobs.distributions)
        spelled = spell(knobs.parts(trial.params))
        if spelled in self.skipped or spelled in {rung.precision for rung in self.rungs}:
            study.tell(trial, state=TrialState.FAIL)
            return
        prepared = self._prepare(spelled)
        if self.aim.goal == "size" and self.best and prepared.bundle_bytes >= self.best.bundle_bytes:
            self.skipped.add(spelled)
            study.tell(trial, state=TrialState.FAIL)
            return
        before, folder = self.best, self._try(prepared)
        rung = self.rungs[-1]
        trial.set_user_attr("rung", msgspec.json.encode(rung).decode())
        study.tell(trial, [self._figure(rung), excess(worst(rung))] if rung.metrics else [REFUSED, REFUSED])
        kept = folder if self.best is not before else None
        for other in [*self.means.work.iterdir()] if kept else [folder]:
            if other != kept:
                shutil.rmtree(other, ignore_errors=True)

    def _rung(self, prepared: Prepared, folder: Path) -> Rung:
        rung = super()._rung(prepared, folder)
        if self.aim.goal not in FIGURES or rung.refused is not None:
            return rung
        figure = self.aim.figures(folder)[self.aim.goal]
        return msgspec.structs.replace(rung, figures={FIGURES[self.aim.goal]: round(figure, 1)})

    def _measured(self, folder: Path) -> tuple[Metric, ...]:
        """Return the metrics of few samples where these say that it fails, or are all, else those of all."""
        if self.aim.early:
            metrics = self.aim.early(folder)
            are_all = max(metric.samples for metric in metrics) < EARLY
            if are_all or any(metric.drop_interval[0] > metric.limit for metric in metrics):
                return metrics
        return self.means.measure(folder)

    def _is_possible(self, precision: str) -> bool:
        try:
            open_export(replace(self.request, precision=precision))
        except (UnsupportedError, UsageError):
            return False
        return True

    def _remember(self, study: optuna.Study) -> None:
        """Take over the attempts of a study that was stopped; the one that was under way is tried again."""
        for trial in study.trials:
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params, skip_if_exists=False)
            elif trial.state == TrialState.COMPLETE:
                self.rungs.append(msgspec.json.decode(trial.user_attrs["rung"], type=Rung))
