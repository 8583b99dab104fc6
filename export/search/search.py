"""Search for the best bundle that passes: a study of Optuna's over few knobs, which ends in the gate as a ladder does.

The knobs of a module are the precision of its parts, and how many of them, the most sensitive first, take one step up.
A bundle that cannot be better than the best one is not made, and one that fails on few samples is not measured further.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna.trial import TrialState

from edgeglm.bundle import read_manifest
from edgeglm.engines import USUAL_FORMAT
from edgeglm.errors import BudgetError, UnsupportedError, UsageError
from edgeglm.export.pipeline.ladder import CONVERTED, Ladder, Precisions, excess, precisions, spell, worst
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Calibration, Prepared, Request
from edgeglm.export.requests import Switch
from edgeglm.export.search.aim import EARLY, Aim
from edgeglm.export.search.candidates import smaller
from edgeglm.export.search.knobs import Knobs, Setting
from edgeglm.export.search.study import open_study
from edgeglm.manifest import Measured, Metric, Rung

Calibrated = tuple[Request, Calibration | None]
# A model, and whether it is equalized.
Variant = tuple[str, Switch]
# So many questions in a row that bring nothing to measure end a search.
ASKED = 50
# What a goal is measured by; the size of a bundle is known.
FIGURES = {"latency": "answer_ms", "memory": "peak_rss_bytes"}
# The excess of what could not be measured.
REFUSED = 1e9


@dataclass
class Search(Ladder):
    """Rungs in the order in which a study tried them.

    Args:
        aim: The goal.
        calibrated: What calibrating each model in each way gave; a worker's attempts share it.
        taken: What was tried, or need not be.
        smallest: By model, the precision of all parts, each in the smallest.
        least: The size of the smallest bundle; 0 where a converter may make a smaller one.
        orders: The parts by their sensitivity, which depends on model and calibration.
    """

    aim: Aim = field(kw_only=True)
    calibrated: dict[Variant, Calibrated] = field(default_factory=dict)
    taken: set[Setting] = field(default_factory=set)
    smallest: dict[str, Precisions] = field(default_factory=dict)
    least: int = 0
    orders: dict[Variant, tuple[list[str], dict[str, float]]] = field(default_factory=dict)

    @property
    def best(self) -> Rung | None:
        """The one that passes with the least figure."""
        return min((rung for rung in self.rungs if rung.passed), key=self._figure, default=None)

    def _figure(self, rung: Rung) -> float:
        return rung.figures[FIGURES[self.aim.goal]] if self.aim.goal in FIGURES else float(rung.bundle_bytes)

    def prepared(self) -> Prepared:
        """Return the export of the best attempt."""
        assert self.best
        return self._make(Setting.of(self.best))

    @property
    def measured(self) -> Measured:
        """The measurements for the manifest of the best attempt."""
        assert self.best
        _, sensitivity = self._ordered(Setting.of(self.best))
        return Measured(self.best.metrics, tuple(self.rungs), sensitivity)

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
                if other != kept and other.name != CONVERTED:
                    shutil.rmtree(other, ignore_errors=True)

    def attempt(self, setting: Setting) -> Rung:
        """Make a bundle and measure it."""
        self._try(self._make(setting))
        return self.rungs[-1]

    def _open(self) -> tuple[optuna.Study, Knobs]:
        """Return the study with what is tried first, and its knobs."""
        study = open_study(self.aim.study, self.aim.identity)
        self._remember(study)
        smallest = {model: prepare(open_export(self._request(model))) for model in self.aim.options["model"]}
        self.smallest = {model: precisions(prepared) for model, prepared in smallest.items()}
        knobs = Knobs.of([*self.smallest.values()], self._is_possible, self.aim.options, self.aim.formats)
        if self.aim.formats == (USUAL_FORMAT,):
            self.least = min(prepared.bundle_bytes for prepared in smallest.values())
        for first in knobs.first():
            study.enqueue_trial(first, skip_if_exists=True)
        return study, knobs

    def _propose(self, study: optuna.Study, knobs: Knobs) -> tuple[optuna.Trial, Prepared] | None:
        """Return what is tried next; None where nothing can be better, or nothing new comes of many questions."""
        for _ in range(ASKED):
            if self._is_least():
                break
            trial = study.ask(knobs.distributions)
            setting = self._setting(knobs, trial.params)
            if setting not in self.taken:
                self.taken.add(setting)
                prepared = self._make(setting)
                if self._can_be_better(prepared):
                    return trial, prepared
            study.tell(trial, state=TrialState.FAIL)
        return None

    def _can_be_better(self, prepared: Prepared) -> bool:
        """Return whether a bundle may be better than the best; a converter's files have no size before."""
        converted = any(module.choice.is_converted for module in prepared.modules)
        return self.aim.goal != "size" or not self.best or converted or prepared.bundle_bytes < self.best.bundle_bytes

    def _is_least(self) -> bool:
        """Return whether the smallest bundle passes, which none can be smaller than."""
        return self.aim.goal == "size" and bool(self.best and self.best.bundle_bytes <= self.least)

    def _setting(self, knobs: Knobs, chosen: Mapping[str, Any]) -> Setting:
        setting = Setting("", **{name: knobs.option(chosen, name) for name in self.aim.options})
        order, _ = self._ordered(setting)
        parts = knobs.parts(chosen, self.smallest[setting.model], order)
        return msgspec.structs.replace(setting, precision=spell(parts), format=knobs.format(chosen))

    def _ordered(self, setting: Setting) -> tuple[list[str], dict[str, float]]:
        """Return the parts that can take a step, the most sensitive first, and how sensitive they are."""
        variant = setting.model, setting.equalization
        if USUAL_FORMAT not in self.aim.formats:  # others have one precision for all parts
            return [], {}
        if variant not in self.orders:
            smallest = self._make(Setting(self.request.precision, setting.equalization, setting.model))
            self.orders[variant] = self._order(smallest), self.sensitivity
        return self.orders[variant]

    def _make(self, setting: Setting) -> Prepared:
        request, calibration = self._calibrated(setting)
        opened = open_export(replace(request, precision=setting.precision, format=setting.format))
        self.means.check(opened)
        return prepare(opened, calibration)

    def _calibrated(self, setting: Setting) -> Calibrated:
        """Return a request and what its weights are encoded by, which is found once."""
        variant = setting.model, setting.equalization
        if variant not in self.calibrated:
            request = replace(self._request(setting.model), equalizes=setting.equalization == "on")
            own = self.request, self.means.calibration
            self.calibrated[variant] = own if request == self.request else self.means.calibrate(request)
        return self.calibrated[variant]

    def _request(self, model: str) -> Request:
        return smaller(self.request, self.aim.models[model], model) if model else self.request

    def setting_of(self, prepared: Prepared) -> Setting:
        """Return the choices that an export was prepared with."""
        request = prepared.request
        model = "" if request.folder == self.request.folder else request.name
        equalization: Switch = "on" if request.equalizes else "off"
        return Setting(spell(precisions(prepared)), equalization, model, request.format)

    def _tell(self, study: optuna.Study, trial: optuna.Trial, rung: Rung) -> None:
        trial.set_user_attr("rung", msgspec.json.encode(rung).decode())
        study.tell(trial, [self._figure(rung), excess(worst(rung))] if rung.metrics else [REFUSED, REFUSED])

    def _rung(self, prepared: Prepared, folder: Path) -> Rung:
        options = self.setting_of(prepared).options
        rung = msgspec.structs.replace(super()._rung(prepared, folder), options=options)
        if rung.refused is None:
            rung = msgspec.structs.replace(rung, bundle_bytes=_bytes(folder))
        if self.aim.goal not in FIGURES or rung.refused is not None:
            return rung
        try:
            figure = self.aim.figures(folder)[self.aim.goal]
        except BudgetError as error:  # the board has not enough for it
            why = f"{error.what}: {error.why}"
            return Rung(rung.precision, rung.bundle_bytes, passed=False, refused=why, options=options)
        return msgspec.structs.replace(rung, figures={FIGURES[self.aim.goal]: round(figure, 1)})

    def _measured(self, folder: Path) -> tuple[Metric, ...]:
        """Return the metrics of few samples where these say that it fails, or are all, else those of all."""
        if self.aim.early:
            metrics = self.aim.early(folder)
            are_all = max(metric.samples for metric in metrics) < EARLY
            if are_all or any(metric.drop_interval[0] > metric.limit for metric in metrics):
                return metrics
        return self.means.measure(folder)

    def _is_possible(self, precision: str, format_: str) -> bool:
        try:
            opened = open_export(replace(self.request, precision=precision, format=format_))
        except (UnsupportedError, UsageError):
            return False
        if format_ != USUAL_FORMAT:  # whose converter may take more than the budget
            self.means.check(opened)
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
                self.taken.add(Setting.of(rung))


def _bytes(folder: Path) -> int:
    """Return what `Prepared.bundle_bytes` foresees, with the files that a converter has made."""
    made = read_manifest(folder)
    return made.bundle_bytes - made.files["report.html"].bytes
