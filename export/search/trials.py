"""A search whose bundles are made and measured by workers of Ray; this process keeps the study and writes the best."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial

import msgspec
import optuna

from edgeglm.export.cluster import Cluster, Running, connect
from edgeglm.export.pipeline.job import Job
from edgeglm.export.pipeline.opening import open_job
from edgeglm.export.prepare.types import Calibration, Prepared, Request
from edgeglm.export.requests import SearchRequest, Show
from edgeglm.export.search.aim import Aim, aim_of, study_of
from edgeglm.export.search.candidates import with_pruned
from edgeglm.export.search.knobs import Setting
from edgeglm.export.search.search import Calibrated, Search, Variant
from edgeglm.export.search.study import check_study
from edgeglm.export.write.converted import Converted
from edgeglm.export.write.reuse import Reuse
from edgeglm.manifest import Rung
from edgeglm.scratch import scratch_folder

# Folders of a worker, which end with its process.
_LEAVE = ExitStack()
atexit.register(_LEAVE.close)


class Trial(msgspec.Struct, frozen=True):
    """A bundle to make and to measure.

    Args:
        search: What is searched for.
        setting: Of the bundle.
        budget: Bytes of memory.
    """

    search: SearchRequest
    setting: Setting
    budget: int


@dataclass
class Spread(Search):
    """A search whose attempts are under way side by side.

    Args:
        job: Predicts what an attempt takes.
        search: What is searched for.
    """

    job: Job = field(kw_only=True)
    search: SearchRequest = field(kw_only=True)

    def climb(self) -> None:
        """Have as many attempts under way as the cluster has room for. Raises as `Search.climb`, and as `connect`."""
        assert self.search.cluster
        with connect(self.search.cluster, self.job.budget) as cluster:
            study, knobs = self._open()
            running = dict[Running, optuna.Trial]()
            while True:
                room = min(cluster.processors, self.aim.trials - len(self.rungs))
                while len(running) < room and (proposal := self._propose(study, knobs)):
                    trial, prepared = proposal
                    running[self._start(cluster, prepared)] = trial
                if not running:
                    return
                done = cluster.first([*running])
                rung: Rung = cluster.result(done)
                self.rungs.append(rung)
                self._tell(study, running.pop(done), rung)
                self.means.show(rung)

    def _start(self, cluster: Cluster, prepared: Prepared) -> Running:
        task = Trial(msgspec.structs.replace(self.search, cluster=None), self.setting_of(prepared), self.job.budget)
        # What else a machine does would be in a latency.
        processors = cluster.machine if self.aim.goal == "latency" else 1
        return cluster.start(try_precision, task, self.job.peak(prepared.opened), processors)


def searching(job: Job, request: SearchRequest, show: Show) -> Job:
    """Return a job that searches for the best bundle, here or on a cluster. Raises as `open_export`."""
    if request.prune:  # which may take hours: what else is wrong is said before
        aim_of(job, request)[0].expected()
    request = with_pruned(job, request, study_of(job, request), show)
    asked, aim = aim_of(job, request)
    check_study(aim.study, aim.identity, is_named=request.study is not None)
    if request.cluster is None:
        return replace(asked, climber=partial(Search, aim=aim))
    return replace(asked, climber=partial(Spread, aim=aim, job=asked, search=request))


def try_precision(trial: Trial) -> Rung:
    """Make a bundle and measure it; it is gone afterwards. Raises as `edgeglm.export.api.export`."""
    ready = _ready(trial.search, trial.budget)
    with scratch_folder("trial") as work:
        means = ready.job.means(work, ready.calibration, lambda _: None, lambda _: None, _LEAVE, ready.reuse)
        return Search(ready.request, means, aim=ready.aim, calibrated=ready.calibrated).attempt(trial.setting)


@dataclass(frozen=True)
class _Ready:
    """What all attempts of a worker share: it calibrates once in each way, and converts a module once."""

    job: Job
    aim: Aim
    request: Request
    calibration: Calibration | None
    reuse: Reuse
    calibrated: dict[Variant, Calibrated] = field(default_factory=dict)


@cache
def _ready(search: SearchRequest, budget: int) -> _Ready:
    job, aim = aim_of(open_job(search, budget), search)
    request, calibration = job.calibrated(lambda _: None, _LEAVE)
    return _Ready(job, aim, request, calibration, Reuse(Converted(_LEAVE.enter_context(scratch_folder("converted")))))
