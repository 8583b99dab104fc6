"""Search for the best bundle that passes: a study of Optuna's over few knobs, which ends in the gate as a ladder does.

The knobs of a module are the precision of its parts, and how many of them, the most sensitive first, take one step up.
A bundle that cannot be better than the best one is not made, and one that fails on few samples is not measured further.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import optuna
from optuna.trial import TrialState

from edgeglm.errors import BudgetError, UnsupportedError, UsageError
from edgeglm.export.burn.figures import measure_there
from edgeglm.export.calibrate.calibrator import examples_hash
from edgeglm.export.evaluate.speed import MEASURER, SpeedRequest
from edgeglm.export.pipeline.job import Job
from edgeglm.export.pipeline.ladder import Ladder, Measure, excess, precisions, spell, worst
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Opened, Prepared
from edgeglm.export.requests import SearchRequest
from edgeglm.export.search.knobs import STEPS, Knobs
from edgeglm.export.search.study import open_study
from edgeglm.manifest import Metric, Rung

Goal = Literal["size", "latency", "memory"]
# So many questions in a row that bring nothing to measure end a search.
ASKED = 50
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


def aim_of(job: Job, request: SearchRequest) -> tuple[Job, Aim]:
    """Return a job that begins with all parts in their smallest precision, and its aim. Raises as `open_export`."""
    assert job.gate
    asked = replace(job.request, precision=STEPS[0])
    try:
        opened = open_export(asked)
    except UnsupportedError:  # what an NPU computes, for one, has a precision of its own
        asked = job.request
        opened = open_export(asked)
    gate = job.gate
    aim = Aim(
        goal=request.goal,
        trials=request.trials,
        study=request.study or job.folder.with_name(f"{job.folder.name}.study"),
        identity=_identity(opened, job, request),
        early=lambda bundle: gate.metrics(bundle, EARLY),
        figures=partial(measure_there, request.via, request.python) if request.via else _figures,
    )
    return replace(job, request=asked), aim


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
    board = (request.via,) if request.via else ()
    digest.update(repr((job.request.profile, opened.checkpoint.adapter_sha256, options, *board)).encode())
    digest.update(examples_hash(job.samples).encode())
    return digest.hexdigest()


def _figures(bundle: Path) -> dict[str, float]:
    speed = MEASURER.run(SpeedRequest(bundle), "measuring")
    return {"latency": speed.answer_ms, "memory": float(speed.peak_rss_bytes)}


@dataclass
class Search(Ladder):
    """Rungs in the order in which a study tried them."""

    aim: Aim = field(kw_only=True)
    taken: set[str] = field(default_factory=set)
    lowest: str = ""

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
        study, knobs = self._open()
        while len(self.rungs) < self.aim.trials and (proposal := self._propose(study, knobs)):
            trial, prepared = proposal
            before, folder = self.best, self._try(prepared)
            self._tell(study, trial, self.rungs[-1])
            kept = folder if self.best is not before else None
            for other in [*self.means.work.iterdir()] if kept else [folder]:
                if other != kept:
                    shutil.rmtree(other, ignore_errors=True)

    def attempt(self, precision: str) -> Rung:
        """Make a bundle of a precision and measure it."""
        self._try(self._prepare(precision))
        return self.rungs[-1]

    def _open(self) -> tuple[optuna.Study, Knobs]:
        """Return the study with what is tried first, and its knobs."""
        study = open_study(self.aim.study, self.aim.identity)
        self._remember(study)
        lowest = precisions(self._prepare(self.request.precision))
        knobs = Knobs.of(lowest, self._order(lowest), self._is_possible)
        self.lowest = spell(lowest)
        for first in knobs.first():
            study.enqueue_trial(first, skip_if_exists=True)
        return study, knobs

    def _propose(self, study: optuna.Study, knobs: Knobs) -> tuple[optuna.Trial, Prepared] | None:
        """Return what is tried next; None where nothing can be better, or nothing new comes of many questions."""
        for _ in range(ASKED):
            if self._is_least():
                break
            trial = study.ask(knobs.distributions)
            spelled = spell(knobs.parts(trial.params))
            if spelled not in self.taken:
                self.taken.add(spelled)
                prepared = self._prepare(spelled)
                if self.aim.goal != "size" or not self.best or prepared.bundle_bytes < self.best.bundle_bytes:
                    return trial, prepared
            study.tell(trial, state=TrialState.FAIL)
        return None

    def _is_least(self) -> bool:
        """Return whether the smallest bundle passes, which none can be smaller than."""
        return self.aim.goal == "size" and bool(self.best and self.best.precision == self.lowest)

    def _tell(self, study: optuna.Study, trial: optuna.Trial, rung: Rung) -> None:
        trial.set_user_attr("rung", msgspec.json.encode(rung).decode())
        study.tell(trial, [self._figure(rung), excess(worst(rung))] if rung.metrics else [REFUSED, REFUSED])

    def _rung(self, prepared: Prepared, folder: Path) -> Rung:
        rung = super()._rung(prepared, folder)
        if self.aim.goal not in FIGURES or rung.refused is not None:
            return rung
        try:
            figure = self.aim.figures(folder)[self.aim.goal]
        except BudgetError as error:  # the board has not enough for it
            why = f"{error.what}: {error.why}"
            return Rung(rung.precision, rung.bundle_bytes, passed=False, refused=why)
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
                rung = msgspec.json.decode(trial.user_attrs["rung"], type=Rung)
                self.rungs.append(rung)
                self.taken.add(rung.precision)
