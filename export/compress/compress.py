"""Make a smaller checkpoint: open, choose block by block, write, rename."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgeglm.devices.loader import load_profile
from edgeglm.errors import UsageError
from edgeglm.export.calibrate.calibrator import check_examples, examples_hash
from edgeglm.export.checkpoint.lineage import ZEROS, Lineage, Step, read_lineage, weights_key
from edgeglm.export.checkpoint.locate import locate
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.choose import Chosen, choose, removed
from edgeglm.export.compress.cuts import cut_config, cut_tensors
from edgeglm.export.compress.options import (
    check_learning,
    check_output,
    check_recovery,
    check_source,
    check_what,
    hash_data,
    pace_of,
    read_examples,
)
from edgeglm.export.compress.parts import Part, find_parts
from edgeglm.export.compress.rates import Left, parse_rates, plan_parts, whole
from edgeglm.export.compress.sparsity import matrices, sparsify
from edgeglm.export.compress.walks import walk_bytes
from edgeglm.export.compress.write import write_checkpoint
from edgeglm.export.compress.zeros import check_shapes, parse_sparse
from edgeglm.export.families.rope import FILE
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Prepared, Request
from edgeglm.export.prove.probes import Example
from edgeglm.export.requests import CompressRequest, CompressResult, Progress, Show
from edgeglm.export.trace.tracer import trace
from edgeglm.export.write.disk import explained, lock_folder, make_folders, remove_empty, sync

if TYPE_CHECKING:
    from edgeglm.export.compress.team import Team

# A profile whose limits bind nothing; no module is made.
PROFILE = "cpu"
NEW, MODEL, WORK, KEY = "new", "model", "work", "key"


def compress(request: CompressRequest, budget: int, show: Show) -> CompressResult | None:
    """Write a smaller checkpoint, alone or as the leader of a team; or help its leader, and return None.

    Args:
        request: What is asked for.
        budget: Bytes of memory.
        show: Is told which step is at work.

    Raises:
        EdgeglmError: The model, a rate, the samples or the folder is wrong, or memory or disk is too short.
    """
    check_what(request)
    if not request.distributed:
        return _compress(request, budget, show)
    from edgeglm.export.compress.recover import follow
    from edgeglm.export.compress.team import joined

    with joined() as team:
        if team.leads:
            return _compress(request, budget, show, team)
        follow(team)
    return None


def _compress(request: CompressRequest, budget: int, show: Show, team: Team | None = None) -> CompressResult:
    source, name = locate(request.model)
    check_output(request.output, source)
    check_source(source)
    opened = open_export(Request(source, name, load_profile(PROFILE), "fp32"))
    checkpoint, plan = opened.checkpoint, _plan(request, opened.checkpoint)
    examples = read_examples(request, checkpoint, name)
    if examples:
        check_examples(opened, examples)
    if request.distill:
        check_recovery(request, checkpoint)
        check_learning(request, checkpoint, _parameters(checkpoint, plan), budget, team.size if team else 1)
    walk_bytes(opened, examples, budget)
    show(Progress("tracing"))
    (traced,) = trace([opened.probe], opened.checkpoint.folder / FILE)
    prepared = Prepared(opened, traced.model, traced, (), {})
    with _partial(request, _key(request, checkpoint, examples)) as partial:
        notes, scores = _quantized(checkpoint), list[float]()
        if not (partial / MODEL).exists():
            notes += _make(request, prepared, plan, examples, partial, budget, show)
        smaller = Checkpoint.open(partial / MODEL)
        made = partial / MODEL
        if request.distill:
            from edgeglm.export.compress.recover import SAVED, recover

            def tell(stage: str, done: float) -> None:
                show(Progress(stage, done))

            scores = recover(request, checkpoint, made, partial / WORK, budget, tell, team)
            made = partial / WORK / SAVED
        with explained(request.output, request.output):
            os.rename(made, request.output)
            sync(request.output.absolute().parent)
    return CompressResult(
        folder=request.output,
        parts=_left_of(request, plan),
        parameters=(checkpoint.parameters, smaller.parameters),
        bytes=(checkpoint.total_bytes, smaller.total_bytes),
        recovery=scores,
        notes=notes,
        max_ram=budget,
    )


def _plan(request: CompressRequest, checkpoint: Checkpoint) -> dict[Part, Left]:
    """Return what stays of each stack. Raises EdgeglmError where nothing would, or zeros have no place."""
    parts = find_parts(checkpoint)
    if request.prune:
        return plan_parts(parts, parse_rates(request.prune), checkpoint)
    for shapes in matrices(parts, checkpoint).values():
        check_shapes(parse_sparse(str(request.sparse)), shapes)
    return whole(parts)


def _make(
    request: CompressRequest,
    prepared: Prepared,
    plan: Mapping[Part, Left],
    examples: Sequence[Example],
    partial: Path,
    budget: int,
    show: Show,
) -> list[str]:
    """Write the smaller checkpoint into the partial folder; return notes."""
    checkpoint, kept = prepared.checkpoint, dict[str, dict[str, Any]]()
    if request.sparse:
        chosen, zeros, notes = sparsify(request, prepared, list(plan), examples, partial / WORK, budget, show)
        kept = {ZEROS: dict[str, Any](zeros.items())}
    else:
        chosen, notes = choose(request, prepared, plan, examples, partial / WORK, budget, show)
        units = {reader: units.tolist() for reader, units in chosen.units.items()}
        kept = {"layers": dict[str, Any](chosen.layers.items()), "units": dict[str, Any](units)}
    cuts = cut_tensors(checkpoint, plan, chosen)
    lineage = _lineage(request, checkpoint, prepared.request.name, examples, kept)
    config = cut_config(checkpoint.config, plan if request.prune else {})
    total = sum(cut.nbytes for cut in cuts)

    def tell(done: float) -> None:
        show(Progress("writing", done, total))

    with explained(request.output, request.output, total):
        write_checkpoint(partial / NEW, cuts, checkpoint, config, lineage, tell)
        os.rename(partial / NEW, partial / MODEL)
        sync(partial)
    for file in chosen.fitted.values():
        file.unlink()
    return notes


def _quantized(checkpoint: Checkpoint) -> list[str]:
    """Return a note on what was quantized and is not any more; none where nothing was."""
    count = sum(isinstance(tensor, Matrix) for tensor in checkpoint.tensors.values())
    return [f"{count} quantized matrices are written unquantized: compress the original instead"] if count else []


def _parameters(checkpoint: Checkpoint, plan: Mapping[Part, Left]) -> int:
    """Return how many weights a plan leaves, whichever they are."""
    units = {reader: np.arange(kept) for reader, (_, kept) in removed(plan).items()}
    layers = {part.module: list(range(left.layers)) for part, left in plan.items() if left.layers < part.layers}
    return sum(math.prod(cut.shape) for cut in cut_tensors(checkpoint, plan, Chosen(units, layers)))


def _key(request: CompressRequest, checkpoint: Checkpoint, examples: Sequence[Example]) -> str:
    """Hash all that determines the smaller checkpoint."""
    data = [] if request.distill is None else [hash_data(request.distill)]
    epochs, rate = pace_of(request)
    asked = msgspec.structs.replace(
        request, output=Path(), max_ram=None, resume=True, distributed=False, epochs=epochs, learning_rate=rate
    )
    said = (asked, weights_key(checkpoint), examples_hash(examples), data)
    return hashlib.sha256(repr(said).encode()).hexdigest()


@contextmanager
def _partial(request: CompressRequest, key: str) -> Iterator[Path]:
    """Yield a locked folder beside the output, gone afterwards; a recovery that ended early is gone on with."""
    output = request.output
    partial = output.absolute().with_name(f"{output.name}.partial")
    with explained(output, output):
        made = make_folders(partial.parent)
        lock = lock_folder(partial)
        if lock is None:
            raise UsageError(output, "is being written by another process", "wait for it, or give another folder")
        try:
            _clear(partial, key, resume=request.resume)
            if output.exists():
                output.rmdir()
            yield partial
        except BaseException:
            if request.distill is None or not (partial / MODEL).exists():
                shutil.rmtree(partial, ignore_errors=True)
                remove_empty(made)
            raise
        else:
            shutil.rmtree(partial, ignore_errors=True)
        finally:
            os.close(lock)


def _clear(partial: Path, key: str, *, resume: bool) -> None:
    """Remove what an earlier run left, unless it was to make the same."""
    known = (partial / KEY).read_text() if (partial / KEY).is_file() else ""
    shutil.rmtree(partial / NEW, ignore_errors=True)
    if known != key or not resume:
        for name in (MODEL, WORK):
            shutil.rmtree(partial / name, ignore_errors=True)
    (partial / WORK).mkdir(exist_ok=True)
    (partial / KEY).write_text(key)


def _lineage(
    request: CompressRequest,
    checkpoint: Checkpoint,
    name: str,
    examples: Sequence[Example],
    kept: dict[str, dict[str, Any]],
) -> Lineage:
    before = read_lineage(checkpoint.folder)
    asked: dict[str, Any] = {"sparse": request.sparse} if request.sparse else {"prune": request.prune}
    asked["by"] = request.by
    if request.distill:
        epochs, rate = pace_of(request)
        asked |= {
            "distill_sha256": hash_data(request.distill),
            "epochs": epochs,
            "learning_rate": rate,
            "freeze": list(request.freeze),
        }
    step = Step(command=asked, calibration_sha256=examples_hash(examples) if examples else None, kept=kept)
    if before:
        return Lineage(original=before.original, place=before.place, sha256=before.sha256, steps=(*before.steps, step))
    place = None if request.model is None else name if "/" in name else str(checkpoint.folder.resolve())
    return Lineage(original=name, place=place, sha256=weights_key(checkpoint), steps=(step,))


def _counts(part: Part, left: Left) -> dict[str, tuple[int, int]]:
    counts = {"layers": (part.layers, left.layers), "mlp channels": (part.width, left.width)}
    return counts | ({"groups of heads": (part.groups, left.groups)} if part.groups else {})


def _left_of(request: CompressRequest, plan: Mapping[Part, Left]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return by module what there was of it, and what is left: weights that are not zero, or channels and layers."""
    lineage = read_lineage(request.output)
    if not request.sparse or not lineage:
        return {part.module: _counts(part, left) for part, left in plan.items()}
    counts = lineage.steps[-1].kept[ZEROS].items()
    return {module: {"weights": (count["weights"], count["weights"] - count["zeros"])} for module, count in counts}
