"""Learn from a calibration how each matrix is best rounded, a segment at a time: factors, and what errors are fed back.

Memory holds the covariances of one segment; what feeds errors back lies in a file until it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeglm.export.calibrate.equalize import Pair, choose_factor, find_pairs, sample_rows, try_inputs
from edgeglm.export.calibrate.histogram import Range
from edgeglm.export.model import Choice, Rows
from edgeglm.export.quantize.feedback import Feedback, Inputs, make_tile, save_tiles, tile_slices
from edgeglm.export.quantize.kept import is_kept
from edgeglm.export.quantize.product_errors import ProductErrors, mean_errors
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.quantize.schemes import Blocked, Int8, Int8Static, Scheme, parse_scheme
from edgeglm.roles import ModuleName

# Tokens of a value that factors are tried on.
TRIED = 256


class Tokens:
    """The tokens that a value has: a few of them, their count, and the covariance of their channels by tile."""

    def __init__(self, columns: int, groups: int, *, covariance: bool) -> None:
        self.tiles = tile_slices(columns)
        self.sums = [self._zeros(tile) for tile in self.tiles] if covariance else []
        self.energy = np.zeros(columns)
        self.low, self.high = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
        self.kept: list[Floats] = []
        self.count, self.share = 0, max(1, TRIED // groups)

    @staticmethod
    def _zeros(tile: slice) -> Floats:
        return np.zeros((tile.stop - tile.start, tile.stop - tile.start), np.float32)

    def add(self, tokens: Floats, counts: Floats | None = None) -> None:
        """Count tokens [n, columns]; `counts` [n] is what each counts, one if not given."""
        scaled = tokens * np.sqrt(1 if counts is None else counts[:, None])
        for tile, total in zip(self.tiles, self.sums, strict=False):
            part = np.ascontiguousarray(scaled[:, tile])
            np.add(total, part.T @ part, out=total)
        self.energy += np.square(scaled, out=scaled).sum(0, dtype=np.float64)
        self.count += len(tokens)
        self.low, self.high = np.minimum(self.low, tokens.min(0)), np.maximum(self.high, tokens.max(0))
        spread = np.linspace(0, len(tokens) - 1, min(self.share, len(tokens))).astype(int)
        self.kept.append(tokens[spread])

    @property
    def mean_squares(self) -> Floats:
        """The energy of each channel: [columns]."""
        return (self.energy / max(self.count, 1)).astype(np.float32)

    def feedback(self, file: Path, factor: Floats | None) -> Feedback:
        """Write what feeds errors back for matrices whose inputs are divided by `factor`. Raises OSError."""
        tiles = []
        for tile, total in zip(self.tiles, self.sums, strict=True):
            covariance = total.astype(np.float64) / max(self.count, 1)
            if factor is not None:
                covariance /= np.outer(factor[tile], factor[tile])
            tiles.append(make_tile(covariance))
        return save_tiles(tiles, file, len(self.energy))


@dataclass
class Learned:
    """Results of a walk of the original, for the encoders.

    Args:
        inputs: By matrix.
        divisors: By tensor whose rows are divided.
        ranges: By matrix whose inputs are divided, and have a fixed range.
        errors: By the first of the matrices that read a value.
        left: Matrices that the budget has no room to feed errors back in, one of those that read a value.
    """

    inputs: dict[str, Inputs] = field(default_factory=dict)
    divisors: dict[str, Floats] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    errors: dict[str, ProductErrors] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def notes(self) -> Iterator[str]:
        """Yield what the calibration gains by module, and which matrices have no feedback."""
        for module in dict.fromkeys(error.module for error in self.errors.values()):
            found = mean_errors(error for error in self.errors.values() if error.module == module)
            said = {"plain": "rounded plainly", "equalized": "with scales moved", "fed_back": "with errors fed back"}
            means = ", ".join(f"{mean:.2g} {said[kind]}" for kind, mean in found.items())
            yield f"calibration: relative error of the {module}'s products: {means}"
        if self.left:
            more = f" and {len(self.left) - 1} others" if len(self.left) > 1 else ""
            yield f"--max-ram has no room to feed rounding errors back for the inputs of {self.left[0]}{more}"


class Learner:
    """Watches a walk: which values a segment's matrices read, and at its end what is learnt of them.

    Args:
        choices: The modules' precisions.
        source: The original's weights.
        file: Where feedback is kept; None for none.
        weights: By group of prompts that pass through together, what each of their tokens counts in the decoder.
        widest: Most input channels of a matrix that has feedback.
        equalizes: Whether scales are moved.
    """

    def __init__(
        self,
        choices: Mapping[ModuleName, Choice],
        source: Rows,
        file: Path | None,
        weights: Sequence[Floats],
        widest: int,
        *,
        equalizes: bool = True,
    ) -> None:
        self.choices, self.source, self.file = choices, source, file
        self.weights, self.widest, self.equalizes = weights, widest, equalizes
        self.learned = Learned()
        self.values: dict[str, str] = {}
        self.tokens: dict[str, Tokens] = {}
        self.pairs: list[Pair] = []
        self.scheme: Scheme | None = None

    def begin(self, module: ModuleName, part: str, graph: ir.Graph) -> None:
        """Start with a segment."""
        self.choice, self.part = self.choices[module], part
        self.scheme = _rounded_by(self.choice, part)
        found = find_pairs(graph) if self.scheme and self.equalizes else ()
        self.pairs = [pair for pair in found if not any(self._is_kept(name) for name in pair.tensors)]
        self.values, self.tokens = {}, {}
        for node in graph if self.scheme else ():
            if node.op_type == "Linear" and node.inputs[0] is not None:
                names = [f"{name}.weight" for name in node.attributes["weights"].as_strings()]
                self.values |= {name: f"{node.inputs[0].name}" for name in names if not self._is_kept(name)}

    @property
    def has_feedback(self) -> bool:
        """Whether the segment's matrices feed errors back, where there is room: those in INT4."""
        return isinstance(self.scheme, Blocked) and self.scheme.bits == 4

    def _is_kept(self, name: str) -> bool:
        return self.scheme is not None and is_kept(self.source.find(name), self.scheme, self.choice.dialect)

    def counts(self, weight: str) -> bool:
        """Return whether the inputs of a matrix get a fixed range."""
        return weight in self.values and isinstance(self.scheme, Int8Static)

    def see(self, weight: str, tokens: Floats) -> None:
        """See what a matrix is multiplied by; the first of those that read a value speaks for all."""
        value = self.values.get(weight)
        if value is None or next(name for name in self.values if self.values[name] == value) != weight:
            return
        if value not in self.tokens:
            fits = self.file is not None and tokens.shape[1] <= self.widest
            if self.has_feedback and not fits:
                self.learned.left.append(weight)
            self.tokens[value] = Tokens(tokens.shape[1], len(self.weights), covariance=self.has_feedback and fits)
        seen = self.tokens[value]
        seen.add(tokens, self._weights(len(seen.kept), len(tokens)) / _energies(tokens))

    def _weights(self, group: int, tokens: int) -> Floats:
        """Return what each token of a group of prompts counts; the decoder's last segment sees answers alone."""
        is_whole = self.choice.is_decoder and self.part != "back"
        return self.weights[group] if is_whole else np.ones(tokens, np.float32)

    def end(self) -> None:
        """Learn from what was seen in the segment. Raises OSError."""
        pairs = {self.values[pair.readers[0]]: pair for pair in self.pairs}
        for value, seen in self.tokens.items():
            names = [name for name in self.values if self.values[name] == value]
            self.learned.inputs |= dict.fromkeys(names, self._learn(names, seen, pairs.get(value)))
        self.values, self.tokens, self.pairs = {}, {}, []

    def _learn(self, names: Sequence[str], seen: Tokens, pair: Pair | None) -> Inputs:
        """Learn what matrices that read the same value are rounded by."""
        assert self.scheme is not None
        kept, energy, dialect = np.concatenate(seen.kept), seen.mean_squares, self.choice.dialect
        rows = sample_rows(names, self.source)
        if pair:
            plain, best = choose_factor(pair, kept, energy, self.source, self.scheme, dialect)
        else:
            plain = best = try_inputs(rows, kept, Inputs(energy), self.scheme, dialect)
        if pair and best.factor is not None:
            self._divide(pair, best.factor)
            whole = float((seen.low / best.factor).min()), float((seen.high / best.factor).max())
            self.learned.ranges |= dict.fromkeys(names, whole) if best.range_ else {}
        inputs, error = Inputs.divided(energy, best.factor), best.error
        if seen.sums and self.file:
            inputs = replace(inputs, feedback=seen.feedback(self.file, best.factor))
            error = try_inputs(rows, kept, inputs, self.scheme, dialect).error
        roots = [float(np.sqrt(square)) for square in (plain.error, best.error, error)]
        precision = self.choice.precision_of(self.part)
        self.learned.errors[names[0]] = ProductErrors(self.choice.name, self.part, precision, *roots)
        return inputs

    def _divide(self, pair: Pair, factor: Floats) -> None:
        of_rows = pair.heads(factor)[:, 0].reshape(-1)
        for maker in pair.makers:
            rows = self.source.find(maker.tensor).shape[0]
            divisor = self.learned.divisors.setdefault(maker.tensor, np.ones(rows, np.float32))
            divisor[maker.start : maker.stop] *= of_rows


def _energies(tokens: Floats) -> Floats:
    """Return the mean square of each token [n, columns]; of tokens that differ in size, the largest would rule."""
    energies: Floats = np.einsum("nk,nk->n", tokens, tokens) / np.float32(tokens.shape[1])
    return np.maximum(energies, np.float32(1e-30))


def _rounded_by(choice: Choice, part: str) -> Scheme | None:
    """Return the scheme of a segment, where edgeglm itself rounds its matrices."""
    if choice.is_converted or choice.kind.integers:
        return None
    scheme = parse_scheme(choice.precision_of(part))
    return scheme if isinstance(scheme, Blocked | Int8 | Int8Static) else None
