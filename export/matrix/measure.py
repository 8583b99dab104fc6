"""Measure one cell by the commands that a user would type: export, build, run, validate."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

from edgeglm.errors import AccuracyError, BudgetError, UnsupportedError
from edgeglm.export.demo.samples import DATA
from edgeglm.export.matrix.outcome import Cell, Outcome, Part, Stage, untried
from edgeglm.export.matrix.programs import Done, Programs
from edgeglm.manifest import MANIFEST, Metric
from edgeglm.scratch import scratch_folder

# What an engine is installed as.
DISTRIBUTIONS = {
    "ort": "onnxruntime",
    "tensorrt": "tensorrt",
    "qnn": "onnxruntime-qnn",
    "litert": "ai-edge-litert",
}
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
        formats: Whether `edgeglm export` has a choice of formats.
    """

    budget: int
    limit: int
    data: Path | None
    formats: bool
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
            folder = work / "bundle"
            done = self._command(folder, "export", *export_arguments(cell, self.plan), "-o", folder)
            if done.code:
                failed = Stage("failed", done.line)
                return msgspec.structs.replace(outcome, exported=failed, finished=_is_final(done.code))
            outcome = _exported(outcome, done.result)
            return self._proven(cell, outcome, folder)

    def _proven(self, cell: Cell, outcome: Outcome, folder: Path) -> Outcome:
        # As plain JSON, so that a bundle of another kind or with more in it is no stranger.
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        compiled, codes = self._compile(manifest, folder)
        outcome = msgspec.structs.replace(outcome, compiled=compiled, finished=all(map(_is_final, codes)))
        if "model" not in manifest:
            return msgspec.structs.replace(
                outcome, executed=Stage("not run", "the runner answers from language models")
            )
        ran = self._run(manifest["model"], folder)
        validated = self._validate(cell, folder)
        codes = [done.code for done in (ran, validated) if done and done.code != AccuracyError.exit_code]
        outcome = msgspec.structs.replace(
            outcome,
            executed=_executed(ran, manifest["modules"]),
            peak_rss_bytes=ran.result.get("peak_rss_bytes", 0),
            finished=outcome.finished and all(map(_is_final, codes)),
        )
        return _validated(outcome, validated)

    def _compile(self, manifest: Mapping[str, Any], folder: Path) -> tuple[Stage, list[int]]:
        """Return what compiled the modules for their engine: the export, or the builder here."""
        found = {
            f"{made['by']} for {made['chip']}" for module in manifest["modules"] if (made := module.get("compiled"))
        }
        if any(module.get("engine") == "tensorrt" for module in manifest["modules"]):
            done = self._command(folder, "build", folder)
            if done.code == UnsupportedError.exit_code:  # no GPU
                done = self._command(folder, "build", folder, "--sm", PROOF_SM)
            if done.code:
                return Stage("failed", done.line), [done.code]
            found |= {f"{module['built_by']} for SM{module['sm']}" for module in done.result["modules"]}
        return Stage("done", ", ".join(sorted(found))) if found else Stage("not needed"), []

    def _run(self, model: Mapping[str, Any], folder: Path) -> Done:
        picture = ["--image", SCREEN] if model.get("vision") else []
        return self._command(folder, "run", folder, "--prompt", PROMPT, *picture, "--max-new-tokens", ANSWER)

    def _validate(self, cell: Cell, folder: Path) -> Done | None:
        data = ["--data", self.plan.data, "--reference", cell.argument] if cell.argument and self.plan.data else []
        if cell.argument and not data:
            return None
        limits = ["--limit", self.plan.limit, "--max-ram", self.plan.budget]
        with self._validating:
            return self._command(folder, "validate", folder, *limits, *data)

    def _command(self, folder: Path, *arguments: object) -> Done:
        """Run a command whose failure does not say where the bundle lay for a moment."""
        done = self.programs.run(*arguments)
        return replace(done, line=done.line.replace(str(folder), "the bundle"))


def export_arguments(cell: Cell, plan: Plan) -> Sequence[object]:
    """Return MODEL and the options that make the cell's bundle."""
    choice = ["--format", cell.format] if plan.formats else []
    model = [cell.argument] if cell.argument else []
    return [*model, "--target", cell.target, "--precision", cell.precision, *choice, "--max-ram", plan.budget]


def _is_final(code: int) -> bool:
    return code >= 0 and code not in PASSING


def _exported(outcome: Outcome, result: Mapping[str, Any]) -> Outcome:
    keys = Part.__struct_fields__
    return msgspec.structs.replace(
        outcome,
        exported=Stage("done", ""),
        modules=tuple(Part(**{key: module[key] for key in keys}) for module in result["modules"]),
        bundle_bytes=result["bundle_bytes"],
        export_peak_rss_bytes=result["peak_rss_bytes"],
    )


def _executed(done: Done, modules: Sequence[Mapping[str, Any]]) -> Stage:
    """Return the engines that answered, and what else ran a module, such as a compiler's simulator."""
    if done.code:
        return Stage("failed", done.line)
    engines = {_engine(module["engine"]) for module in done.result["modules"]}
    proofs = {made["executed_on"] for module in modules if (made := module.get("compiled")) and made.get("executed_on")}
    return Stage("done", ", ".join([*sorted(engines), *sorted(proofs), platform.machine()]))


def _engine(name: str) -> str:
    distribution = DISTRIBUTIONS.get(name, name)
    with suppress(metadata.PackageNotFoundError):
        return f"{distribution} {metadata.version(distribution)}"
    return distribution


def _validated(outcome: Outcome, done: Done | None) -> Outcome:
    """Return the outcome with the metrics; too great a drop is a failure, too few samples are not."""
    if done is None:
        why = "there is nothing to measure it on: give --data FILE"
        return msgspec.structs.replace(outcome, validated=Stage("not run", why))
    if "metrics" not in done.result:
        return msgspec.structs.replace(outcome, validated=Stage("failed", done.line))
    found = done.result["metrics"]
    metrics = msgspec.convert(
        [{key: metric[key] for key in Metric.__struct_fields__} for metric in found], list[Metric]
    )
    state = Stage("failed", done.line) if any(metric["verdict"] == "fail" for metric in found) else Stage("done")
    return msgspec.structs.replace(outcome, validated=state, samples=done.result["samples"], metrics=tuple(metrics))
