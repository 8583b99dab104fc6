"""``--accuracy-drop`` of `edgeglm export`: what is measured on, and the ladder as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeglm.errors import AccuracyError, UsageError
from edgeglm.export.choices import parse_precisions
from edgeglm.export.demo.samples import DATA, read_samples
from edgeglm.export.pipeline.forecast import loaded_bytes
from edgeglm.export.pipeline.ladder import SENSITIVITY_SAMPLES, Ladder, worst
from edgeglm.export.pipeline.measure import Validation
from edgeglm.export.pipeline.prepared import Opened, Request
from edgeglm.export.pipeline.probes import Example
from edgeglm.export.plan import check_peak
from edgeglm.manifest import Metric, Rung
from edgeglm.units import parse_percent


@dataclass(frozen=True)
class Gate:
    """The measurement of a model's bundles, and the samples that order its parts."""

    name: str
    validation: Validation
    samples: Sequence[Example]

    def check_budget(self, opened: Opened) -> int:
        """Return the predicted peak of measuring the first bundle. Raises BudgetError if ``--max-ram`` is less."""
        peak = self.validation.peak(opened.checkpoint, loaded_bytes(opened))
        or_without = "; or leave --accuracy-drop out, and validate elsewhere"
        check_peak(peak, self.validation.budget, f"to measure {self.name}", or_without)
        return peak


def open_gate(
    request: Request, accuracy_drop: str, calibration: Path | None, samples: Sequence[Example], budget: int
) -> Gate:
    """Return the gate of ``--accuracy-drop``; `samples` are those of `calibration`. Raises UsageError without data."""
    allowed = parse_percent(accuracy_drop)
    if not request.is_demo and calibration is None:
        why = f"there is nothing to measure {request.name} on"
        raise UsageError("--accuracy-drop", why, "give samples with targets, or a text, by --calibration FILE")
    samples = samples or list(read_samples(DATA / "calibration.jsonl", SENSITIVITY_SAMPLES))
    if request.is_demo:
        return Gate(request.name, Validation(allowed, budget, adapter=request.adapter), samples)
    return Gate(
        request.name, Validation(allowed, budget, calibration, request.folder, adapter=request.adapter), samples
    )


def nothing_passed(folder: Path, ladder: Ladder) -> AccuracyError:
    """Return the error of a ladder without an end, with the numbers of the attempt that came nearest."""
    rung = ladder.nearest
    if rung is None:
        return AccuracyError(folder, f"every precision fails: {ladder.rungs[-1].refused}", "export it in fp32")
    metric = worst(rung)
    drop, high, limit = (_amount(metric, value) for value in (metric.drop, metric.drop_interval[1], metric.limit))
    why = (
        f"no precision passes; the best, {brief(rung.precision)}, drops {metric.name} by {drop} "
        f"and perhaps by {high}, where {limit} is allowed"
    )
    return AccuracyError(folder, why, "allow more with --accuracy-drop")


def describe_ladder(rungs: Sequence[Rung]) -> list[dict[str, object]]:
    """Return the rungs as ``--json`` gives them."""
    return [{"metrics": [], "refused": None, **msgspec.to_builtins(rung)} for rung in rungs]


def ladder_table(rungs: Sequence[Rung]) -> Iterator[str]:
    """Yield the rungs as the lines of a table, with the drop of each metric."""
    names = list(dict.fromkeys(metric.name for rung in rungs for metric in rung.metrics))
    rows = [("PRECISION", "BUNDLE", *(f"{name} DROP" for name in names), "VERDICT")]
    for rung in rungs:
        drops = {metric.name: _amount(metric, metric.drop) for metric in rung.metrics}
        verdict = "pass" if rung.passed else "refused" if rung.refused else _failing(rung.metrics)
        size = f"{rung.bundle_bytes / (1 << 20):.2f}MiB"
        rows.append((brief(rung.precision), size, *(drops.get(name, "-") for name in names), verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def brief(precision: str) -> str:
    """Return a ``--precision`` with the parts that differ counted: ``vision=int4, decoder=int4 (2 int8-block)``."""
    asked = parse_precisions(precision)
    modules = {name: value for name, value in asked.items() if "." not in name}
    return ", ".join(f"{name}={value}{_exceptions(name, asked)}" for name, value in modules.items()) or precision


def _exceptions(module: str, asked: Mapping[str, str]) -> str:
    others = [value for name, value in asked.items() if name.startswith(f"{module}.")]
    counts = ", ".join(f"{others.count(value)} {value}" for value in dict.fromkeys(others))
    return f" ({counts})" if counts else ""


def _failing(metrics: Sequence[Metric]) -> str:
    """Return whether a drop exceeds its limit, or is unclear."""
    return "fail" if any(metric.drop > metric.limit for metric in metrics) else "unclear"


def _amount(metric: Metric, value: float) -> str:
    """Return a share as percent, anything whose limit is more than a whole in its own unit."""
    return f"{value:.2%}" if metric.limit <= 1 else f"{value:.1f}"
