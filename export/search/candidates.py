"""The smaller checkpoints that a search chooses among too: those that the user gives, and those of its rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from edgeglm.errors import UsageError
from edgeglm.export.calibrate.calibrator import examples_hash
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.lineage import read_lineage, weights_key
from edgeglm.export.checkpoint.locate import locate
from edgeglm.export.compress.compress import compress
from edgeglm.export.compress.options import read_examples
from edgeglm.export.compress.parts import find_parts
from edgeglm.export.compress.rates import parse_rates, plan_parts
from edgeglm.export.pipeline.job import Job
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.requests import CompressRequest, SearchRequest, Show
from edgeglm.export.targets.base import check_steps

COMPRESSED = "give one that edgeglm compress made of it"


def smaller(request: Request, folder: Path, name: str) -> Request:
    """Return the request of a smaller checkpoint in place of its original, whose data does not ship with it."""
    return replace(request, folder=folder, name=name, shipped=None)


def find_candidates(job: Job, asked: Request, models: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders of smaller checkpoints by name, in its order.

    Args:
        job: The search's.
        asked: What MODEL is exported with.
        models: As ``--also`` takes them.

    Raises:
        EdgeglmError: One is not made of MODEL, cannot be exported, or does not fit the budget.
    """
    if models and asked.adapter:
        why = "merges an adapter into MODEL alone, and not into the others"
        raise UsageError("--adapter", why, "compress the merged model, or leave the others out")
    found: dict[str, Path] = {}
    for model in models:
        folder, name = locate(model)
        opened = open_export(smaller(asked, folder, name))
        _check_lineage(asked, folder)
        if name in (*found, asked.name):
            raise UsageError(model, f"is called {name}, as another one is", "rename its folder")
        for step in check_steps(opened.choices):
            step.check(opened, job.samples)
        job.peak(opened)
        found[name] = folder
    return dict(sorted(found.items()))


def _check_lineage(asked: Request, folder: Path) -> None:
    """Check that a checkpoint was compressed from MODEL, or from MODEL's own original. Raises UsageError."""
    own, lineage = read_lineage(asked.folder), read_lineage(folder)
    if lineage is None:
        raise UsageError(folder, f"does not say that it was compressed from {asked.name}", COMPRESSED)
    if lineage.sha256 != (own.sha256 if own else weights_key(open_checkpoint(asked.folder))):
        raise UsageError(folder, f"was compressed from {lineage.original}, which {asked.name} is not", COMPRESSED)


def with_pruned(job: Job, request: SearchRequest, study: Path, show: Show) -> SearchRequest:
    """Return the request with a checkpoint for each of its rates.

    Args:
        job: The search's.
        request: With rates.
        study: The file beside which they are made, and stay.
        show: Is told how far it is.

    Raises:
        EdgeglmError: A rate is wrong, or its checkpoint cannot be made.
    """
    if request.prune:
        checkpoint = open_checkpoint(job.request.folder)
        for rate in request.prune:
            plan_parts(find_parts(checkpoint), parse_rates(rate), checkpoint)
    made = tuple(str(folder) for folder in _pruned(job, request, study, show))
    return msgspec.structs.replace(request, also=(*request.also, *made), prune=())


def _pruned(job: Job, request: SearchRequest, study: Path, show: Show) -> Iterator[Path]:
    for rate in dict.fromkeys(request.prune):
        folder = study.with_name(f"{study.name}.models") / f"pruned-{rate}"
        task = CompressRequest(
            output=folder, model=request.model, prune=rate, calibration=request.calibration, max_ram=request.max_ram
        )
        if folder.is_dir():
            _check_pruned(job, task)
        else:
            compress(task, job.budget, show)
        yield folder


def _check_pruned(job: Job, task: CompressRequest) -> None:
    """Check that a checkpoint of an earlier run was pruned as this one would be. Raises UsageError."""
    lineage = read_lineage(task.output)
    examples = read_examples(task, open_checkpoint(job.request.folder), job.request.name)
    step = lineage.steps[-1] if lineage and lineage.steps else None
    if not step or (step.command.get("prune"), step.calibration_sha256) != (task.prune, examples_hash(examples)):
        raise UsageError(task.output, "was not pruned by this rate and these samples", "move it, or give another study")
