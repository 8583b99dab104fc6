"""``accuracy_drop`` of an export: what a bundle is measured by, and what to say where no precision passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeglm import manifest
from edgeglm.errors import AccuracyError, UsageError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.lineage import find_original
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.choose.precision import parse_precisions
from edgeglm.export.evaluate.original.memory import base_bytes, is_streamed, streamed_bytes, whole_bytes
from edgeglm.export.evaluate.statistics import RULE_OF_THREE
from edgeglm.export.pipeline.ladder import SENSITIVITY_SAMPLES, Ladder, worst
from edgeglm.export.predict.forecast import loaded_bytes
from edgeglm.export.predict.peaks import check_peak
from edgeglm.export.prepare.types import Opened, Request
from edgeglm.export.prove.probes import Example
from edgeglm.export.requests import SAMPLES, ValidateRequest, ValidateResult
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.worker import Worker

VALIDATOR = Worker("edgeglm.export.api_worker", ValidateResult, "the validation")


@dataclass(frozen=True)
class Gate:
    """The measurement of a model's bundles, and the samples that order its parts."""

    name: str
    request: ValidateRequest
    samples: Sequence[Example]

    def metrics(self, bundle: Path, limit: int | None = None) -> tuple[manifest.Metric, ...]:
        """Return all metrics of a bundle, whether they pass or not; torch never comes into this process.

        Args:
            bundle: Its folder.
            limit: Samples to measure on; None for all that are asked for.

        Raises:
            EdgeglmError: It cannot be validated.
        """
        task = msgspec.structs.replace(self.request, bundle=bundle, limit=limit or self.request.limit)
        return tuple(metric.sealed for metric in VALIDATOR.run(task, "validate").metrics)

    def check_budget(self, opened: Opened) -> int:
        """Return the predicted peak of measuring the first bundle. Raises BudgetError if ``--max-ram`` is less."""
        original, data, budget = self._original(opened), self.request.data, self.request.max_ram or 0
        streamed = is_streamed(original, budget) or (data is not None and data.suffix != SAMPLES)
        whole = streamed_bytes(original) if streamed else whole_bytes(original)
        peak = max(whole, base_bytes() + loaded_bytes(opened))
        or_without = "; or leave --accuracy-drop out, and validate elsewhere"
        check_peak(peak, budget, f"to measure {self.name}", or_without)
        return peak

    def _original(self, opened: Opened) -> Checkpoint:
        """Return what bundles are compared with: MODEL, or what that was compressed from, wherever MODEL lies now."""
        folder = Path(self.request.reference) if self.request.reference else DEMO
        original = find_original(folder, "put it back, or take the original for MODEL")
        return opened.checkpoint if original == opened.checkpoint.folder else open_checkpoint(original)


def open_gate(
    request: Request,
    allowed: float,
    calibration: Path | None,
    samples: Sequence[Example],
    budget: int,
    limit: int | None = None,
) -> Gate:
    """Return the gate of ``--accuracy-drop``.

    Args:
        request: What is exported.
        allowed: The largest drop.
        calibration: A file of samples or text.
        samples: Those of it.
        budget: Bytes of memory.
        limit: Samples, or windows of text, that are measured at most.

    Raises:
        UsageError: There is nothing to measure on.
    """
    if not request.shipped and calibration is None:
        why = f"there is nothing to measure {request.name} on"
        raise UsageError("--accuracy-drop", why, "give samples with targets, or a text, by --calibration FILE")
    if request.shipped and not samples:
        samples = list(read_samples(request.shipped.calibration, SENSITIVITY_SAMPLES))
    adapter = str(request.adapter) if request.adapter else None
    data, reference = (None, None) if request.shipped else (calibration, str(request.folder))
    measured = ValidateRequest(
        bundle=Path(),
        accuracy_drop=allowed,
        data=data,
        reference=reference,
        adapter=adapter,
        limit=limit,
        max_ram=budget,
    )
    return Gate(request.name, measured, samples)


def nothing_passed(folder: Path, ladder: Ladder) -> AccuracyError:
    """Return the error of a ladder without an end, with the numbers of the attempt that came nearest."""
    rung = ladder.nearest
    if rung is None:
        return AccuracyError(folder, f"every precision fails: {ladder.rungs[-1].refused}", "export it in fp32")
    metric = worst(rung)
    drop, high, limit = (amount(metric, value) for value in (metric.drop, metric.drop_interval[1], metric.limit))
    why = (
        f"no precision passes; the best, {describe(rung)}, drops {metric.name} by {drop} "
        f"and perhaps by {high}, where {limit} is allowed"
    )
    if least := _least(metric):
        why += f"; {metric.samples} samples leave {amount(metric, least)} open even where nothing differs"
        return AccuracyError(folder, why, "measure on more samples, or allow more with --accuracy-drop")
    return AccuracyError(folder, why, "allow more with --accuracy-drop")


def _least(metric: manifest.Metric) -> float | None:
    """Return the drop of a share that so few samples leave open whatever they show, if it is above the limit."""
    least = RULE_OF_THREE / max(metric.samples, 1)
    is_bound = math.isclose(metric.drop_interval[1], min(metric.drop + least, 1.0))
    return min(least, 1.0) if is_bound and least > metric.limit else None


def describe(rung: manifest.Rung) -> str:
    """Return what an attempt was made with: its precision in brief, and its options."""
    return "; ".join([brief(rung.precision), *(f"{name} {value}" for name, value in rung.options.items())])


def brief(precision: str) -> str:
    """Return a ``--precision`` with the parts that differ counted: ``vision=int4, decoder=int4 (2 int8-block)``."""
    asked = parse_precisions(precision)
    modules = {name: value for name, value in asked.items() if "." not in name}
    return ", ".join(f"{name}={value}{_exceptions(name, asked)}" for name, value in modules.items()) or precision


def _exceptions(module: str, asked: Mapping[str, str]) -> str:
    others = [value for name, value in asked.items() if name.startswith(f"{module}.")]
    counts = ", ".join(f"{others.count(value)} {value}" for value in dict.fromkeys(others))
    return f" ({counts})" if counts else ""


def amount(metric: manifest.Metric, value: float) -> str:
    """Return a share as percent, anything whose limit is more than a whole in its own unit."""
    return f"{value:.2%}" if metric.limit <= 1 else f"{value:.1f}"
