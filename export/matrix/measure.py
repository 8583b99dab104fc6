"""Measure one cell: export, build, run, validate, each in a process of its own."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import msgspec

from edgeglm.bundle import read_sealed
from edgeglm.engines import ENGINES, EngineName
from edgeglm.errors import AccuracyError, BudgetError, UnsupportedError
from edgeglm.export.matrix.outcome import Cell, Outcome, Part, Stage, untried
from edgeglm.export.matrix.programs import Done, Programs
from edgeglm.export.requests import BuildRequest, ExportRequest, ExportResult, ValidateRequest, ValidateResult
from edgeglm.export.samples.shipped import DATA
from edgeglm.manifest import GraphManifest, Manifest, Module
from edgeglm.runtimes.engines.tensorrt.build import BuildResult
from edgeglm.scratch import scratch_folder

T = TypeVar("T")
# Jetson Orin's Ampere, as far as TensorRT for RTX builds for it.
PROOF_SM = 86
# Exit codes of what may come out otherwise the next time: a bug, no room, and all kills.
PASSING = (1, BudgetError.exit_code)
PROMPT, SCREEN, ANSWER = "Select OK", DATA / "evaluation" / "0001.webp", 32


@dataclass(frozen=True)
class Plan:
    """The settings that all cells share.

    Args:
        budget: Bytes that one export may take.
        limit: Samples of the demo's screens, or windows of `data`.
        data: What other models than the demo are validated on.
    """

    budget: int
    limit: int
    data: Path | None
    environment: Mapping[str, str]


@dataclass
class Measurement:
    """Measures cells; safe to be called from several threads."""

    plan: Plan
    programs: Programs = field(default_factory=Programs)
    # The first to validate a model has the original answer; the others find its answers, and measure undisturbed.
    _validating: Lock = field(default_factory=Lock)

    def __call__(self, cell: Cell) -> Outcome:
        """Return what comes of a cell. Raises Stopped."""
        outcome = untried(cell, dict(self.plan.environment), "")
        with scratch_folder("matrix") as work:
            request = export_request(cell, self.plan, work / "bundle")
            done = _without(work, self.programs.ask(request, ExportResult))
            if done.result is None:
                failed = Stage("failed", done.line)
                return msgspec.structs.replace(outcome, exported=failed, finished=_is_final(done.code))
            outcome = _exported(outcome, done.result)
            return self._proven(cell, outcome, work, done.result.bundle)

    def _proven(self, cell: Cell, outcome: Outcome, work: Path, folder: Path) -> Outcome:
        sealed = read_sealed(folder)
        compiled, codes = self._compile(sealed.modules, work, folder)
        outcome = msgspec.structs.replace(outcome, compiled=compiled, finished=all(map(_is_final, codes)))
        if isinstance(sealed, GraphManifest):
            return msgspec.structs.replace(
                outcome, executed=Stage("not run", "the runner answers from language models")
            )
        ran = _without(work, self._run(sealed, folder))
        validated = self._validate(cell, work, folder)
        codes = [done.code for done in (ran, validated) if done]
        outcome = msgspec.structs.replace(
            outcome,
            executed=_executed(ran, sealed.modules),
            peak_rss_bytes=ran.result.get("peak_rss_bytes", 0) if ran.result else 0,
            finished=outcome.finished and all(map(_is_final, codes)),
        )
        return _validated(outcome, validated)

    def _compile(self, modules: Sequence[Module], work: Path, folder: Path) -> tuple[Stage, list[int]]:
        """Return what compiled the modules for their engine: the export, or the builder here."""
        found = {f"{made.by} for {made.chip}" for module in modules if (made := module.compiled)}
        if any(module.engine and ENGINES[module.engine].builds for module in modules):
            done = self.programs.ask(BuildRequest(bundle=folder), BuildResult)
            if done.code == UnsupportedError.exit_code:  # no GPU
                done = self.programs.ask(BuildRequest(bundle=folder, sm=PROOF_SM), BuildResult)
            if done.result is None:
                return Stage("failed", _without(work, done).line), [done.code]
            found |= {f"{engine.record.built_by} for SM{engine.record.sm}" for _, engine in done.result.engines}
        return Stage("done", ", ".join(sorted(found))) if found else Stage("not needed"), []

    def _run(self, manifest: Manifest, folder: Path) -> Done[dict[str, Any]]:
        picture = ["--image", SCREEN] if manifest.model.vision else []
        return self.programs.run(folder, "--prompt", PROMPT, *picture, "--max-new-tokens", ANSWER)

    def _validate(self, cell: Cell, work: Path, folder: Path) -> Done[ValidateResult] | None:
        data = self.plan.data if cell.argument else None
        if cell.argument and not data:
            return None
        request = ValidateRequest(
            bundle=folder,
            data=data,
            reference=cell.argument,
            limit=self.plan.limit,
            max_ram=self.plan.budget,
        )
        with self._validating:
            return _without(work, self.programs.ask(request, ValidateResult))


def measure_cell(plan: Plan, cell: Cell) -> Outcome:
    """Return what comes of a cell, in a worker of a cluster."""
    return Measurement(plan)(cell)


def _without(work: Path, done: Done[T]) -> Done[T]:
    """Return a failure that does not say where the bundle lay for a moment."""
    line = done.line.replace(str(work / "bundle"), "the bundle").replace(str(work), "the bundle's folder")
    return replace(done, line=line)


def export_request(cell: Cell, plan: Plan, folder: Path) -> ExportRequest:
    """Return the request that makes the cell's bundle."""
    return ExportRequest(
        target=cell.target,
        model=cell.argument,
        precision=cell.precision,
        format=cell.format,
        output=folder,
        max_ram=plan.budget,
    )


def _is_final(code: int) -> bool:
    return code >= 0 and code not in PASSING


def _exported(outcome: Outcome, result: ExportResult) -> Outcome:
    manifest = result.manifest
    return msgspec.structs.replace(
        outcome,
        exported=Stage("done", ""),
        modules=tuple(
            Part(module.name, module.precision, manifest.module_bytes(module), module.max_relative_error)
            for module in manifest.modules
        ),
        bundle_bytes=manifest.bundle_bytes,
        export_peak_rss_bytes=result.peak_rss_bytes,
    )


def _executed(done: Done[dict[str, Any]], modules: Sequence[Module]) -> Stage:
    """Return the engines that answered, and what else ran a module, such as a compiler's simulator."""
    if done.result is None:
        return Stage("failed", done.line)
    engines = {_engine(module["engine"]) for module in done.result["modules"]}
    proofs = {made.executed_on for module in modules if (made := module.compiled) and made.executed_on}
    return Stage("done", ", ".join([*sorted(engines), *sorted(proofs), platform.machine()]))


def _engine(name: EngineName) -> str:
    distribution = ENGINES[name].distribution
    with suppress(metadata.PackageNotFoundError):
        return f"{distribution} {metadata.version(distribution)}"
    return distribution


def _validated(outcome: Outcome, done: Done[ValidateResult] | None) -> Outcome:
    """Return the outcome with the metrics; too great a drop is a failure, too few samples are not."""
    if done is None:
        why = "there is nothing to measure it on: give --data FILE"
        return msgspec.structs.replace(outcome, validated=Stage("not run", why))
    if done.result is None:
        return msgspec.structs.replace(outcome, validated=Stage("failed", done.line))
    result, state = done.result, Stage("done")
    if any(metric.verdict == "fail" for metric in result.metrics):
        try:
            result.check()
        except AccuracyError as error:
            state = Stage("failed", f"{error.why}; {error.remedy}")
    metrics = tuple(metric.sealed for metric in result.metrics)
    return msgspec.structs.replace(outcome, validated=state, samples=result.samples, metrics=metrics)
