"""Climb from a precision that loses too much to the smallest bundle that passes, the most sensitive parts first."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeglm import manifest
from edgeglm.engines import USUAL_FORMAT
from edgeglm.errors import AccuracyError, UsageError
from edgeglm.export.pipeline.export import Report, export
from edgeglm.export.pipeline.sensitivity import sensitivities
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Calibration, Opened, Prepared, Request
from edgeglm.export.prove.probes import Example, example_prompts
from edgeglm.export.quantize.schemes import HIGHER
from edgeglm.export.write.disk import explained, lock_folder, make_folders, remove_empty
from edgeglm.export.write.reuse import Reuse
from edgeglm.export.write.target import check_target

# Of the calibration set, for the order of the parts.
SENSITIVITY_SAMPLES = 16

Precisions = dict[str, str]  # by part, as --precision names it: decoder.layer.0, or embedding
Measure = Callable[[Path], tuple[manifest.Metric, ...]]
Calibrate = Callable[[Request], tuple[Request, Calibration | None]]

RUNG = re.compile(r"rung-\d+(\.partial)?")
# Beside the bundles that are tried: what a converter wrote.
CONVERTED = "converted"


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Make a folder beside the target for the bundles that are tried, ``TARGET.ladder``; remove it afterwards.

    Raises:
        UsageError: It holds something else, or another export works there.
    """
    resolved = check_target(target)
    work = resolved.with_name(f"{resolved.name}.ladder")
    with explained(target, work), ExitStack() as leave:
        made = make_folders(work.parent)
        leave.callback(remove_empty, made)
        lock = lock_folder(work)
        if lock is None:
            raise UsageError(target, "another export is writing it", "wait for it, or give another target")
        leave.callback(os.close, lock)
        if not all(name == CONVERTED or RUNG.fullmatch(name) for name in os.listdir(work)):
            raise UsageError(work, "holds what no export wrote", "move it, or give another target")
        leave.callback(shutil.rmtree, work, ignore_errors=True)
        for left in work.iterdir():  # by an export that was killed
            shutil.rmtree(left)
        yield work


@dataclass(frozen=True)
class Means:
    """The inputs of a climb.

    Args:
        work: A folder for bundles that are tried, on the disk of the target.
        samples: Of the calibration set, for the order of the parts.
        calibration: What weights are encoded by, if anything.
        measure: The metrics of a bundle, whichever passes.
        check: Whether an export fits the memory budget; raises BudgetError.
        report: Told of the progress of an export.
        show: Told of each rung.
        calibrate: Returns what another request's weights are encoded by, as `Job.calibrated` does.
        reuse: What bundles have stored alike.
    """

    work: Path
    samples: Sequence[Example]
    calibration: Calibration | None
    measure: Measure
    check: Callable[[Opened], object]
    report: Report
    show: Callable[[manifest.Rung], None]
    calibrate: Calibrate = lambda request: (request, None)
    reuse: Reuse = field(default_factory=Reuse)


@dataclass
class Ladder:
    """The rungs in the order of being tried, and how sensitive the parts were found."""

    request: Request
    means: Means
    rungs: list[manifest.Rung] = field(default_factory=list)
    sensitivity: dict[str, float] = field(default_factory=dict)

    @property
    def reuse(self) -> Reuse:
        """The weights that bundles have stored alike, which each rung takes from and adds to."""
        return self.means.reuse

    @property
    def best(self) -> manifest.Rung | None:
        """The smallest that passes."""
        return min((rung for rung in self.rungs if rung.passed), key=lambda rung: rung.bundle_bytes, default=None)

    @property
    def nearest(self) -> manifest.Rung | None:
        """The failed attempt whose worst metric is the least beyond its limit."""
        tried = [rung for rung in self.rungs if rung.metrics]
        return min(tried, key=lambda rung: excess(worst(rung)), default=None)

    @property
    def precision(self) -> str:
        """The precision of the best attempt, as it was asked for where the first passed."""
        assert self.best
        return self.request.precision if self.best is self.rungs[0] else self.best.precision

    def prepared(self) -> Prepared:
        """Return the export of the best attempt."""
        return prepare(open_export(replace(self.request, precision=self.precision)), self.means.calibration)

    @property
    def measured(self) -> manifest.Measured:
        """The measurements for the manifest of the best attempt."""
        assert self.best
        return manifest.Measured(self.best.metrics, tuple(self.rungs), self.sensitivity)

    def climb(self) -> None:
        """Try what was asked for, and go on until a rung passes or none is left.

        On each level all parts that can take one step first take it together. If that passes, bisection finds how many
        of the most sensitive ones must. The bundles of both ends of a level stay until it is left: whatever lies in
        between is copied from them. TFLite has no higher precision that is smaller than fp32, and is tried once.
        """
        prepared = self._prepare(self.request.precision)
        parts, low = precisions(prepared), self._try(prepared)
        if self.best:
            self._order(prepared)
        onnx = self.request.format == USUAL_FORMAT
        while onnx and not self.best and any(precision in HIGHER for precision in parts.values()):
            raised = {part: HIGHER.get(precision, precision) for part, precision in parts.items()}
            high = self._try(self._prepare(spell(raised)))
            if self.best:
                self._bisect(parts, raised)
            else:
                shutil.rmtree(low, ignore_errors=True)
            parts, low = raised, high

    def _bisect(self, parts: Precisions, raised: Precisions) -> None:
        order = self._order(self._prepare(spell(parts)))
        low, high = 0, len(order)  # so many of the first are too few, are enough
        while high - low > 1:
            middle = (low + high) // 2
            mixed = {part: (raised if part in order[:middle] else parts)[part] for part in parts}
            shutil.rmtree(self._try(self._prepare(spell(mixed))), ignore_errors=True)
            if self.rungs[-1].passed:
                high = middle
            else:
                low = middle

    def _order(self, prepared: Prepared) -> list[str]:
        """Return the parts that can take a step, the most sensitive first."""
        prompts = example_prompts(prepared, self.means.samples[:SENSITIVITY_SAMPLES])
        movable = {part: precision for part, precision in precisions(prepared).items() if precision in HIGHER}
        self.sensitivity = sensitivities(prepared, prompts, movable)
        return sorted(movable, key=lambda part: -self.sensitivity[part])

    def _prepare(self, precision: str) -> Prepared:
        opened = open_export(replace(self.request, precision=precision))
        self.means.check(opened)
        return prepare(opened, self.means.calibration)

    def _try(self, prepared: Prepared) -> Path:
        """Return the folder of one more rung's bundle; each has its own name, which `reuse` goes by."""
        folder = self.means.work / f"rung-{len(self.rungs)}"
        rung = self._rung(prepared, folder)
        self.rungs.append(rung)
        self.means.show(rung)
        return folder

    def _rung(self, prepared: Prepared, folder: Path) -> manifest.Rung:
        precision, size = spell(precisions(prepared)), prepared.bundle_bytes
        try:
            export(
                prepared, folder, predict(prepared), self.means.report, resume=False, reuse=self.reuse,
                carry_test=False, ships=False,
            )  # fmt: skip
        except AccuracyError as error:
            return manifest.Rung(precision, size, passed=False, refused=f"{error.what}: {error.why}")
        metrics = self._measured(folder)
        return manifest.Rung(precision, size, all(metric.passed for metric in metrics), metrics)

    def _measured(self, folder: Path) -> tuple[manifest.Metric, ...]:
        return self.means.measure(folder)


def excess(metric: manifest.Metric) -> float:
    """Return how far a metric may be beyond its limit, as a multiple of that; what is not sure counts."""
    return max(metric.drop, metric.drop_interval[1]) / max(metric.limit, 1e-9)


def worst(rung: manifest.Rung) -> manifest.Metric:
    """Return the metric that is the most beyond its limit, one that fails before one that passes."""
    return max(rung.metrics, key=lambda metric: (not metric.passed, excess(metric)))


def precisions(prepared: Prepared) -> Precisions:
    """Return the precision of every part, in the order of the modules."""
    found: Precisions = {}
    for module in prepared.modules:
        name = module.choice.name
        named = {f"{name}.{part}": precision for part, precision in module.part_precisions.items()}
        found |= named or {name: module.choice.precision}
    return found


def spell(parts: Mapping[str, str]) -> str:
    """Return the ``--precision`` that gives these: the most frequent of a module, and the parts that differ from it."""
    modules: dict[str, Precisions] = {}
    for part, precision in parts.items():
        modules.setdefault(part.partition(".")[0], {})[part] = precision
    said = []
    for module, inside in modules.items():
        usual = Counter(inside.values()).most_common(1)[0][0]
        said.append(f"{module}={usual}")
        said += [f"{part}={precision}" for part, precision in inside.items() if precision != usual]
    return ",".join(said)
