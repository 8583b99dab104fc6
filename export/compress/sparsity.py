"""Make the blocks' matrices sparse on the activations of calibration samples, block by block.

Memory holds one block and the covariances of its inputs; sparse matrices lie in a file each until they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeglm.export.calibrate.learn import Tokens
from edgeglm.export.calibrate.observe import Observed
from edgeglm.export.calibrate.walk import ORIGINAL, Branches, Walk, Watch
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.choose import Chosen
from edgeglm.export.compress.options import L1
from edgeglm.export.compress.parts import Part
from edgeglm.export.compress.walks import Shown, no_room, run_walk, walk_bytes
from edgeglm.export.compress.zeros import (
    Pattern,
    Tile,
    parse_sparse,
    tile_of_covariance,
    tile_of_energy,
    with_zeros,
)
from edgeglm.export.model import Rows
from edgeglm.export.prepare.types import Opened, Prepared
from edgeglm.export.prove.probes import Example, Prompt, example_prompts
from edgeglm.export.prove.reference import OriginalWeights, Segment, Weights
from edgeglm.export.prove.values import feeds, passed_on
from edgeglm.export.quantize.feedback import TILE, tile_slices
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.requests import CompressRequest, Progress, Show
from edgeglm.roles import ModuleName

# Rows that are computed at once.
ROWS = 512
# Arrays in fp64 of a tile while its factors are computed.
COPIES = 6


def matrices(parts: Iterable[Part], checkpoint: Checkpoint) -> dict[ModuleName, dict[str, tuple[int, int]]]:
    """Return by module the matrices of its blocks, and their shapes."""
    made: dict[ModuleName, dict[str, tuple[int, int]]] = {}
    for part in parts:
        prefixes = tuple(part.prefix(layer) for layer in range(part.layers))
        named = ((name, tensor.shape) for name, tensor in checkpoint.tensors.items() if name.startswith(prefixes))
        made[part.module] = {name: (shape[0], shape[1]) for name, shape in named if len(shape) == 2}
    return made


class Sparse(OriginalWeights):
    """The weights of a checkpoint, and in place of some matrices sparse ones, which it makes.

    Args:
        source: The checkpoint.
        pattern: What becomes zero.
        work: A folder for sparse matrices.
    """

    def __init__(self, source: Rows, pattern: Pattern, work: Path) -> None:
        super().__init__(source)
        self.pattern, self.work = pattern, work
        self.files: dict[str, Path] = {}
        self.zeros: dict[str, int] = {}

    def product(self, x: Floats, weight: str) -> Floats:
        """Multiply by the sparse matrix where there is one."""
        if weight not in self.files:
            return super().product(x, weight)
        values = np.memmap(self.files[weight], np.float32, "r", shape=self.source.find(weight).shape)
        y: Floats = x @ values.T
        return y

    def make(self, weight: str, tiles: Sequence[Tile]) -> None:
        """Make a matrix sparse. Raises OSError."""
        file, rows = self.work / f"{len(self.files)}.f32", self.source.find(weight).shape[0]
        self.zeros[weight] = 0
        with open(file, "wb") as output:
            for start in range(0, rows, ROWS):
                values = with_zeros(self.source.rows(weight, start, min(start + ROWS, rows)), tiles, self.pattern)
                self.zeros[weight] += int((values == 0).sum())
                output.write(values.data)
        self.files[weight] = file


class Thinner:
    """Listens to a walk, and makes a segment's matrices sparse at its end.

    Args:
        wanted: The matrices.
        sparse: What makes them.
        prompts: How many pass through.
        widest: Most input channels of a matrix whose weights make up for zeros.
    """

    def __init__(self, wanted: Iterable[str], sparse: Sparse, prompts: int, widest: int) -> None:
        self.wanted, self.sparse, self.prompts, self.widest = set(wanted), sparse, prompts, widest
        self.values: dict[str, str] = {}
        self.tokens: dict[str, Tokens] = {}
        self.errors: dict[str, tuple[float, float]] = {}
        self.left: list[str] = []

    def begin(self, module: ModuleName, part: str, graph: ir.Graph) -> None:
        """Start with a segment: see which values its matrices read."""
        self.values, self.tokens = {}, {}
        for node in graph:
            if node.op_type == "Linear" and node.inputs[0] is not None:
                names = [f"{name}.weight" for name in node.attributes["weights"].as_strings()]
                self.values |= {name: f"{node.inputs[0].name}" for name in names if name in self.wanted}

    def see(self, weight: str, tokens: Floats) -> None:
        """See what a matrix is multiplied by; the first of those that read a value speaks for all."""
        value = self.values.get(weight)
        if value is None or next(name for name in self.values if self.values[name] == value) != weight:
            return
        if value not in self.tokens:
            self.tokens[value] = Tokens(tokens.shape[1], self.prompts, covariance=tokens.shape[1] <= self.widest)
        self.tokens[value].add(tokens)

    def end(self) -> None:
        """Make its matrices sparse. Raises OSError."""
        for weight, value in self.values.items():
            seen = self.tokens[value]
            self.left += [] if seen.sums else [weight]
            self.sparse.make(weight, list(_tiles(seen)))
            kept = np.concatenate(seen.kept)
            want = OriginalWeights(self.sparse.source).product(kept, weight)
            error = self.sparse.product(kept, weight) - want
            self.errors[weight] = float(np.square(error, dtype="f8").sum()), float(np.square(want, dtype="f8").sum())
        self.values, self.tokens = {}, {}


def _tiles(seen: Tokens) -> Iterator[Tile]:
    for index, columns in enumerate(seen.tiles):
        if seen.sums:
            yield tile_of_covariance(columns, seen.sums[index].astype(np.float64) / max(seen.count, 1))
        else:
            yield tile_of_energy(columns, seen.energy[columns] / max(seen.count, 1))


class SparseWalk(Walk):
    """A walk in which what leaves a block is computed with its sparse matrices: later blocks make up for earlier."""

    def __init__(
        self, prepared: Prepared, prompts: Sequence[Prompt], original: Weights, watch: Watch, sparse: Sparse
    ) -> None:
        super().__init__(prepared, prompts, original, {}, watch)
        self.sparse = sparse

    def _pass(self, module: ModuleName, graphs: Iterable[tuple[str, ir.Model]], branches: Branches) -> Branches:
        for name, graph in graphs:
            before = branches[ORIGINAL]
            branches = super()._pass(module, [(name, graph)], branches)
            if name.startswith("layer."):
                segment, inputs = Segment(graph, self.sparse), graph.graph.inputs
                after = [{**values, **passed_on(segment.run(feeds(inputs, values)))} for values in before]
                branches = {ORIGINAL: after}
        return branches


def sparse_by_size(wanted: Mapping[ModuleName, Mapping[str, tuple[int, int]]], sparse: Sparse) -> None:
    """Make matrices sparse by the size of their weights alone, without a sample. Raises OSError."""
    for shapes in wanted.values():
        for name, (_, columns) in shapes.items():
            sparse.make(name, [Tile(slice(0, columns), np.ones(columns, np.float32))])


def widest_input(
    opened: Opened,
    wanted: Mapping[ModuleName, Mapping[str, tuple[int, int]]],
    examples: Sequence[Example],
    budget: int,
) -> int:
    """Return the most input channels of a matrix whose covariance fits, beside those of narrower ones in its block.

    Args:
        opened: The original.
        wanted: By module, the matrices of its blocks.
        examples: The samples.
        budget: Bytes of memory.

    Raises:
        BudgetError: Not even the walk fits.
    """
    needed = walk_bytes(opened, examples, budget) + COPIES * 8 * TILE**2
    widest = 0
    for width in sorted({columns for shapes in wanted.values() for _, columns in shapes.values()}):
        needed += 4 * sum((tile.stop - tile.start) ** 2 for tile in tile_slices(width))
        if needed > budget:
            break
        widest = width
    return widest


def sparsify(
    request: CompressRequest,
    prepared: Prepared,
    parts: Sequence[Part],
    examples: Sequence[Example],
    work: Path,
    budget: int,
    show: Show,
) -> tuple[Chosen, dict[ModuleName, dict[str, int]], list[str]]:
    """Make the matrices of all blocks sparse.

    Args:
        request: What is asked for.
        prepared: The original.
        parts: Its stacks.
        examples: The samples; none for L1.
        work: A folder for sparse matrices.
        budget: Bytes of memory.
        show: Is told how far it is.

    Returns:
        The matrices, by module how many weights and zeros its blocks have, and notes.

    Raises:
        EdgeglmError: The samples are not what the model takes, it is not finite on them, or memory is too short.
        OSError: A file cannot be written.
    """
    assert request.sparse is not None
    pattern, source = parse_sparse(request.sparse), replace(prepared.checkpoint, keep_pages=True)
    wanted, notes = matrices(parts, source), list[str]()
    sparse = Sparse(source, pattern, work)
    if request.by == L1:
        show(Progress("weighing"))
        sparse_by_size(wanted, sparse)
    else:
        widest = widest_input(prepared.opened, wanted, examples, budget)
        names = {name for shapes in wanted.values() for name in shapes}
        thinner = Thinner(names, sparse, len(examples), widest)
        observed, total = Observed(OriginalWeights(source), thinner.see), sum(part.layers + 2 for part in parts)
        shown = Shown(thinner, total, show)
        run_walk(SparseWalk(prepared, example_prompts(prepared, examples), observed, shown, sparse))
        notes = [*_notes(wanted, thinner)]
    counts = {
        module: {
            "weights": sum(rows * columns for rows, columns in shapes.values()),
            "zeros": sum(sparse.zeros.get(name, 0) for name in shapes),
        }
        for module, shapes in wanted.items()
    }
    return Chosen(fitted=sparse.files), counts, notes


def _notes(wanted: Mapping[ModuleName, Mapping[str, tuple[int, int]]], thinner: Thinner) -> Iterator[str]:
    for module, shapes in wanted.items():
        pairs = [thinner.errors[name] for name in shapes if name in thinner.errors]
        mean = np.mean([np.sqrt(error / max(size, 1e-30)) for error, size in pairs])
        yield f"relative error of the {module}'s sparse products: {mean:.2g}"
    yield from no_room(thinner.left, "for the covariance of", "nothing there makes up for zeros")
