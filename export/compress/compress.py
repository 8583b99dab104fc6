"""Make a smaller checkpoint: open, choose block by block, write, rename."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeglm.devices.loader import load_profile
from edgeglm.errors import UsageError
from edgeglm.export.calibrate.calibrator import check_examples, examples_hash, read_calibration, samples_bytes
from edgeglm.export.calibrate.observe import Observed
from edgeglm.export.checkpoint.lineage import Lineage, Step, read_lineage, weights_key
from edgeglm.export.checkpoint.locate import locate
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.choose import Chosen, InfluenceWalk, Observer, choose_by_l1, choose_layers, removed
from edgeglm.export.compress.cuts import cut_config, cut_tensors
from edgeglm.export.compress.parts import Part, find_parts
from edgeglm.export.compress.rates import Left, parse_rates, plan_parts
from edgeglm.export.compress.write import write_checkpoint
from edgeglm.export.predict.peaks import EXPORT_BYTES, TRACE_BYTES, check_peak
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Opened, Prepared, Request
from edgeglm.export.prove.probes import Example, example_prompts
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.export.requests import CompressRequest, CompressResult, Progress, Show
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.export.trace.tracer import trace
from edgeglm.export.write.disk import explained, lock_folder, make_folders, sync
from edgeglm.roles import ModuleName

ACTIVATIONS, L1 = "activations", "l1"
# A profile whose limits bind nothing; no module is made.
PROFILE = "cpu"
# Arrays in fp64 and fp32 of a covariance while a matrix is refitted.
COPIES = 5
MODEL, WORK = "model", "work"


def compress(request: CompressRequest, budget: int, show: Show) -> CompressResult:
    """Write a smaller checkpoint.

    Args:
        request: What is asked for.
        budget: Bytes of memory.
        show: Is told which step is at work.

    Raises:
        EdgeglmError: The model, a rate, the samples or the folder is wrong, or memory or disk is too short.
    """
    rates = parse_rates(request.prune)
    if request.by not in (ACTIVATIONS, L1):
        raise UsageError(f"--by {request.by}", "is no measure of importance", f"give {ACTIVATIONS} or {L1}")
    source, name = locate(request.model)
    _check_output(request.output, source)
    opened = open_export(Request(source, name, load_profile(PROFILE), "fp32"))
    checkpoint = opened.checkpoint
    examples = _examples(request, checkpoint, name)
    show(Progress("tracing"))
    (traced,) = trace([opened.probe])
    prepared = Prepared(opened, traced.model, traced, (), {})
    plan = plan_parts(find_parts(checkpoint, traced.model), rates, checkpoint)
    with _partial(request.output) as partial:
        chosen, notes = _choose(request, prepared, plan, examples, partial / WORK, budget, show)
        cuts = cut_tensors(checkpoint, plan, chosen)
        lineage = _lineage(request, checkpoint, name, examples, chosen)
        config = cut_config(checkpoint.config, plan)
        show(Progress("writing", 0.0))
        total = sum(cut.nbytes for cut in cuts)
        with explained(request.output, request.output, total):
            write_checkpoint(
                partial / MODEL, cuts, checkpoint, config, lineage, lambda done: show(Progress("writing", done, total))
            )
            os.rename(partial / MODEL, request.output)
            sync(request.output.absolute().parent)
    return CompressResult(
        folder=request.output,
        parts={part.module: _counts(part, left) for part, left in plan.items()},
        parameters=(checkpoint.parameters, sum(math.prod(cut.shape) for cut in cuts)),
        bytes=(checkpoint.total_bytes, total),
        notes=notes,
        max_ram=budget,
    )


def _check_output(output: Path, source: Path) -> None:
    with explained(output, output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(output, "exists already", "give a new folder")
        if os.path.realpath(output).startswith(os.path.realpath(source) + os.sep):
            raise UsageError(output, "lies in the checkpoint's own folder", "give another folder")


def _examples(request: CompressRequest, checkpoint: Checkpoint, name: str) -> Sequence[Example]:
    if request.by == L1:
        if request.calibration:
            raise UsageError("--calibration", "is not read by l1, which looks at weights alone", "leave it out")
        return []
    file = request.calibration or (DEMO_DATA.calibration if request.model is None else None)
    if file is None:
        why = f"is needed: the importance of channels is measured on what {name} reads"
        raise UsageError("--calibration", why, "give samples (.jsonl) or a text, or choose --by l1")
    return read_calibration(file, checkpoint.folder)[0]


@contextmanager
def _partial(output: Path) -> Iterator[Path]:
    """Yield a locked, empty folder beside the output, gone afterwards; what a killed run left is removed."""
    partial = output.absolute().with_name(f"{output.name}.partial")
    with explained(output, output):
        make_folders(partial.parent)
        lock = lock_folder(partial)
        if lock is None:
            raise UsageError(output, "is being written by another process", "wait for it, or give another folder")
        try:
            for name in (MODEL, WORK):
                shutil.rmtree(partial / name, ignore_errors=True)
            (partial / WORK).mkdir()
            if output.exists():
                output.rmdir()
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def _choose(
    request: CompressRequest,
    prepared: Prepared,
    plan: Mapping[Part, Left],
    examples: Sequence[Example],
    work: Path,
    budget: int,
    show: Show,
) -> tuple[Chosen, list[str]]:
    """Return what stays, and notes."""
    checkpoint = prepared.checkpoint
    if request.by == L1:
        show(Progress("weighing"))
        return choose_by_l1(plan, checkpoint), []
    check_examples(prepared, examples)
    widest = _widest(prepared.opened, plan, examples, budget)
    source = replace(checkpoint, keep_pages=True)
    observer = Observer(plan, source, work, widest)
    prompts = example_prompts(prepared, examples)
    walk = InfluenceWalk(
        prepared, prompts, Observed(OriginalWeights(source), observer.see), {}, _Shown(observer, plan, show)
    )
    try:
        with np.errstate(all="ignore"), explained(work, work):
            for _ in walk.logits():
                pass
    except ValueError as error:
        raise UsageError("--calibration", str(error), "check the model and the samples") from error
    observer.chosen.layers = choose_layers(plan, walk.influence)
    left = observer.chosen.unfitted
    notes = (
        [f"--max-ram has no room to refit {left[0]} and {len(left) - 1} more: columns are only left out"]
        if left
        else []
    )
    return observer.chosen, notes


class _Shown:
    """A listener that tells how far a walk is, before the one that learns."""

    def __init__(self, observer: Observer, plan: Mapping[Part, Left], show: Show) -> None:
        self.observer, self.show = observer, show
        self.total, self.done = sum(part.layers + 2 for part in plan), 0

    def begin(self, module: ModuleName, part: str, graph: ir.Graph) -> None:
        """Start with a segment."""
        self.show(Progress("choosing", self.done / self.total))
        self.observer.begin(module, part, graph)

    def end(self) -> None:
        """End it."""
        self.done += 1
        self.observer.end()


def _widest(opened: Opened, plan: Mapping[Part, Left], examples: Sequence[Example], budget: int) -> int:
    """Return the most input channels of a matrix that is refitted within the budget.

    Raises:
        BudgetError: Not even the walk fits.
    """
    needed = EXPORT_BYTES + samples_bytes(opened, examples)
    check_peak(max(needed, TRACE_BYTES), budget, f"to compress {opened.request.name}")
    widths = {opened.checkpoint.find(reader).shape[1] for reader in removed(plan)}
    fitting = [width for width in widths if needed + COPIES * 4 * width * width <= budget]
    return max(fitting, default=0)


def _lineage(
    request: CompressRequest, checkpoint: Checkpoint, name: str, examples: Sequence[Example], chosen: Chosen
) -> Lineage:
    before = read_lineage(checkpoint.folder)
    asked = {"prune": request.prune, "by": request.by}
    kept: dict[str, dict[str, Any]] = {
        "layers": dict[str, Any](chosen.layers.items()),
        "units": {reader: units.tolist() for reader, units in chosen.units.items()},
    }
    step = Step(command=asked, calibration_sha256=examples_hash(examples) if examples else None, kept=kept)
    if before:
        return Lineage(original=before.original, place=before.place, sha256=before.sha256, steps=(*before.steps, step))
    place = None if request.model is None else name if "/" in name else str(checkpoint.folder.resolve())
    return Lineage(original=name, place=place, sha256=weights_key(checkpoint), steps=(step,))


def _counts(part: Part, left: Left) -> dict[str, tuple[int, int]]:
    counts = {"layers": (part.layers, left.layers), "mlp channels": (part.width, left.width)}
    return counts | ({"groups of heads": (part.groups, left.groups)} if part.groups else {})
