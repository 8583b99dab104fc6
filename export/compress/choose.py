"""Choose what stays of each stack: by the activations of calibration samples, block by block, or by L1 of the weights.

Memory holds the covariance of one segment's inputs; refitted matrices lie in a file each until they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.calibrate.observe import Observed
from edgeglm.export.calibrate.walk import ORIGINAL, Branches, Walk, Watch
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.moments import Moments, column_sums, row_sums
from edgeglm.export.compress.options import L1
from edgeglm.export.compress.parts import Indices, Part, Units, units_of
from edgeglm.export.compress.rates import Left
from edgeglm.export.compress.walks import Shown, no_room, run_walk, walk_bytes
from edgeglm.export.prepare.types import Opened, Prepared
from edgeglm.export.prove.probes import Example, Prompt, example_prompts
from edgeglm.export.prove.reference import OriginalWeights, Weights
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.requests import CompressRequest, Progress, Show
from edgeglm.roles import ModuleName

# Arrays in fp64 and fp32 of a covariance while a matrix is refitted.
COPIES = 5


@dataclass
class Chosen:
    """The choice of a compression.

    Args:
        units: By reader, the numbers of the units that stay.
        layers: By module, the numbers of the layers that stay.
        fitted: By reader, the file of the columns that stay, refitted: fp32 [rows, kept].
        unfitted: Readers whose covariance had no room.
    """

    units: dict[str, Indices] = field(default_factory=dict)
    layers: dict[ModuleName, list[int]] = field(default_factory=dict)
    fitted: dict[str, Path] = field(default_factory=dict)
    unfitted: list[str] = field(default_factory=list)


def removed(plan: Mapping[Part, Left]) -> dict[str, tuple[Units, int]]:
    """Return the units of which some go, by reader, and how many stay."""
    found = {}
    for part, left in plan.items():
        for units in units_of(part):
            kept = left.width if units.kind == "channels" else left.groups
            if kept < units.count:
                found[units.reader] = (units, kept)
    return found


def best(scores: NDArray[np.float64], kept: int) -> Indices:
    """Return the numbers of the highest scores, in their order; of equal ones the first."""
    order = np.argsort(-scores, kind="stable")
    return np.sort(order[:kept]).astype(np.int64)


class Observer:
    """Listens to a walk of the original: chooses the units of a segment at its end, and refits what reads them.

    Args:
        plan: What stays of each part.
        source: The original's weights.
        work: A folder for refitted matrices.
        widest: Most input channels of a matrix that is refitted.
    """

    def __init__(self, plan: Mapping[Part, Left], source: Checkpoint, work: Path, widest: int) -> None:
        self.source, self.work, self.widest = source, work, widest
        self.wanted = removed(plan)
        self.moments: dict[str, Moments] = {}
        self.chosen = Chosen()

    def begin(self, module: ModuleName, part: str, graph: ir.Graph) -> None:
        """Start with a segment."""
        self.moments = {}

    def see(self, weight: str, tokens: Floats) -> None:
        """See what a matrix is multiplied by."""
        if weight not in self.wanted:
            return
        if weight not in self.moments:
            fits = tokens.shape[1] <= self.widest
            self.moments[weight] = Moments(tokens.shape[1], covariance=fits)
        self.moments[weight].add(tokens)

    def end(self) -> None:
        """Choose. Raises OSError."""
        for reader, moments in self.moments.items():
            units, kept = self.wanted[reader]
            scores = moments.energy * column_sums(self.source, reader, 2)
            self.chosen.units[reader] = chosen = best(scores.reshape(units.count, -1).sum(1), kept)
            if moments.sums is None:
                self.chosen.unfitted.append(reader)
                continue
            file = self.work / f"{len(self.chosen.fitted)}.f32"
            refitted = moments.refit(self.source, reader, units.columns(chosen))
            file.write_bytes(np.ascontiguousarray(refitted).data)  # `tofile` would not say which error of the system
            self.chosen.fitted[reader] = file
        self.moments = {}


class InfluenceWalk(Walk):
    """A walk that keeps how much each block turns its hidden states: one minus their cosine (2403.03853)."""

    def __init__(self, prepared: Prepared, prompts: Sequence[Prompt], original: Weights, watch: Watch) -> None:
        super().__init__(prepared, prompts, original, {}, watch)
        self.influence: dict[ModuleName, list[float]] = {}

    def _pass(self, module: ModuleName, graphs: Iterable[tuple[str, ir.Model]], branches: Branches) -> Branches:
        for name, graph in graphs:
            before = [values.get("hidden") for values in branches[ORIGINAL]]
            branches = super()._pass(module, [(name, graph)], branches)
            if name.startswith("layer."):
                pairs = zip(before, branches[ORIGINAL], strict=True)
                turns = np.concatenate([_turn(state, values["hidden"]) for state, values in pairs if state is not None])
                self.influence.setdefault(module, []).append(float(turns.mean()))
        return branches


def _turn(before: Floats, after: Floats) -> Floats:
    x, y = (state.reshape(-1, state.shape[-1]).astype(np.float64) for state in (before, after))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    turned: Floats = 1 - (x * y).sum(1) / np.maximum(norms, 1e-30)
    return turned


def choose_layers(
    plan: Mapping[Part, Left], scores: Mapping[ModuleName, Sequence[float]]
) -> dict[ModuleName, list[int]]:
    """Return the numbers of the layers that stay, those of the highest scores."""
    return {
        part.module: best(np.array(scores[part.module]), left.layers).tolist()
        for part, left in plan.items()
        if left.layers < part.layers
    }


def choose_by_l1(plan: Mapping[Part, Left], source: Checkpoint) -> Chosen:
    """Return the choice by sums of absolute weights, without a sample."""
    chosen = Chosen()
    for reader, (units, kept) in removed(plan).items():
        scores = column_sums(source, reader, 1).reshape(units.count, -1).sum(1)
        for name, rows in units.rows(source, np.arange(units.count)):
            scores += row_sums(source, name)[rows].sum((0, 2))
        chosen.units[reader] = best(scores, kept)
    turned = {part.module: list(_block_sums(part, source)) for part, left in plan.items() if left.layers < part.layers}
    chosen.layers = choose_layers(plan, turned)
    return chosen


def _block_sums(part: Part, source: Checkpoint) -> Iterator[float]:
    for layer in range(part.layers):
        prefix = part.prefix(layer)
        yield sum(float(row_sums(source, name).sum()) for name in source.tensors if name.startswith(prefix))


def choose(
    request: CompressRequest,
    prepared: Prepared,
    plan: Mapping[Part, Left],
    examples: Sequence[Example],
    work: Path,
    budget: int,
    show: Show,
) -> tuple[Chosen, list[str]]:
    """Choose what stays of each stack.

    Args:
        request: What is asked for.
        prepared: The original.
        plan: How much stays.
        examples: The samples; none for L1.
        work: A folder for refitted matrices.
        budget: Bytes of memory.
        show: Is told how far it is.

    Returns:
        What stays, and notes.

    Raises:
        EdgeglmError: The samples are not what the model takes, it is not finite on them, or memory is too short.
        OSError: A file cannot be written.
    """
    checkpoint = prepared.checkpoint
    if request.by == L1:
        show(Progress("weighing"))
        return choose_by_l1(plan, checkpoint), []
    widest = _widest(prepared.opened, plan, examples, budget)
    source = replace(checkpoint, keep_pages=True)
    observer = Observer(plan, source, work, widest)
    prompts = example_prompts(prepared, examples)
    shown = Shown(observer, sum(part.layers + 2 for part in plan), show)
    walk = InfluenceWalk(prepared, prompts, Observed(OriginalWeights(source), observer.see), shown)
    run_walk(walk)
    observer.chosen.layers = choose_layers(plan, walk.influence)
    notes = no_room(observer.chosen.unfitted, "to refit", "columns are only left out")
    return observer.chosen, notes


def _widest(opened: Opened, plan: Mapping[Part, Left], examples: Sequence[Example], budget: int) -> int:
    """Return the most input channels of a matrix that is refitted within the budget.

    Raises:
        BudgetError: Not even the walk fits.
    """
    needed = walk_bytes(opened, examples, budget)
    widths = {opened.checkpoint.find(reader).shape[1] for reader in removed(plan)}
    fitting = [width for width in widths if needed + COPIES * 4 * width * width <= budget]
    return max(fitting, default=0)
