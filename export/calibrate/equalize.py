"""Move scales from activations into the weights that read them, exactly: SmoothQuant (2211.10438), AWQ (2306.00978).

A value that only matrices read may be divided by a factor a channel where it is made, by the rows of a norm or of the
matrix before, if the columns that read it are multiplied by the same. Factors are powers of two, so in floating point
every product stays the same number. They are found from the graph, whatever the family calls its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeglm.engines import DIALECTS, Dialect
from edgeglm.export.calibrate.attention_heads import find_heads
from edgeglm.export.calibrate.histogram import Histogram, Range, least_squares, min_max
from edgeglm.export.model import Rows
from edgeglm.export.quantize.feedback import Inputs
from edgeglm.export.quantize.rounded import round_activations
from edgeglm.export.quantize.rounding import DAMPING, Floats
from edgeglm.export.quantize.schemes import Int8Static, Scheme
from edgeglm.export.quantize.storage import dequantize, encode

# How much of a channel's size moves into the weights: the rest of the way evens out the weights' own columns.
EXPONENTS = (0.25, 0.5, 0.75, 1.0)
# A factor is within so many powers of two of the others' mean: a channel that calibration never showed may come.
REACH = 10
# Of the squared error without a factor, what a fixed range must leave less than: few tokens give it.
CLEARLY = 0.5
# Rows of a matrix that are rounded to try a factor, in runs.
RUNS, RUN = 4, 64


@dataclass(frozen=True)
class Rescaled:
    """Rows `start` to `stop` of a tensor, a norm, a bias or a matrix, that make a value's channels."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True)
class Pair:
    """A value between weights: the rows that make it, and the matrices that alone read it.

    Behind attention ``shared`` query heads of ``size`` channels read the value head that the rows make.
    """

    makers: tuple[Rescaled, ...]
    readers: tuple[str, ...]
    shared: int = 1
    size: int = 1

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all of them."""
        return (*(maker.tensor for maker in self.makers), *self.readers)

    def heads(self, channels: Floats) -> Floats:
        """Return what the readers' channels [K] are as value heads, those that share one, and channels of a head."""
        return channels.reshape(-1, self.shared, self.size)

    def tie(self, channels: Floats) -> Floats:
        """Return the largest of the channels [K] that share a row, for each of them."""
        heads = self.heads(channels)
        return np.broadcast_to(heads.max(1, keepdims=True), heads.shape).reshape(-1)


@dataclass(frozen=True)
class Trial:
    """A factor [K] of a pair, or none, and the squared error of the readers' outputs relative to those.

    ``range_`` is that of the divided inputs, where their step is fixed.
    """

    factor: Floats | None
    error: float
    range_: Range | None = None


def find_pairs(graph: ir.Graph) -> Iterator[Pair]:
    """Yield the values of a segment of the portable dialect that can be rescaled."""
    outputs = set(graph.outputs)
    for node in graph:
        value = node.outputs[0]
        readers = [use.node for use in value.uses()]
        if value in outputs or not readers or any(reader.op_type != "Linear" for reader in readers):
            continue
        names = tuple(f"{name}.weight" for reader in readers for name in _names(reader))
        if node.op_type == "Reshape" and (heads := find_heads(node)):
            channels = readers[0].attributes["columns"].as_int()
            yield Pair(
                _rows(heads.linear, heads.start, heads.stop), names, channels // (heads.stop - heads.start), heads.size
            )
        elif makers := _norm(node) if node.op_type in ("RMSNorm", "LayerNorm") else _product(node):
            yield Pair(makers, names)


def _names(node: ir.Node) -> Sequence[str]:
    return node.attributes["weights"].as_strings()


def _norm(node: ir.Node) -> tuple[Rescaled, ...]:
    (name,), size = _names(node), node.attributes["size"].as_int()
    suffixes = ("weight", "bias") if node.op_type == "LayerNorm" else ("weight",)
    return tuple(Rescaled(f"{name}.{suffix}", 0, size) for suffix in suffixes)


def _product(node: ir.Node) -> tuple[Rescaled, ...]:
    """Return the rows of the matrix that is one side of a product, such as a gated MLP's; none for anything else."""
    if node.op_type != "Mul":
        return ()
    return next((found for operand in node.inputs if operand and (found := _linear(operand))), ())


def _linear(value: ir.Value) -> tuple[Rescaled, ...]:
    """Return the rows that make a value and nothing else: a Linear's, or those of one part that it is split into."""
    node, start = value.producer(), 0
    if node is None or len(value.uses()) != 1 or value.is_graph_output():
        return ()
    size = value.shape[-1] if value.shape else None
    if node.op_type == "Split" and node.inputs[0] is not None and len(node.inputs[0].uses()) == 1:
        sizes = [output.shape[-1] if output.shape else None for output in node.outputs]
        before = sizes[: node.outputs.index(value)]
        node, total = node.inputs[0].producer(), sum(size for size in sizes if isinstance(size, int))
        start = sum(size for size in before if isinstance(size, int))
        if node is None or node.op_type != "Linear" or total != node.attributes["rows"].as_int():
            return ()
    if node.op_type != "Linear" or node.attributes["split_rotary"].as_int() or not isinstance(size, int):
        return ()
    return _rows(node, start, start + size)


def _rows(node: ir.Node, start: int, stop: int) -> tuple[Rescaled, ...]:
    (name,), bias = _names(node), node.attributes["bias"].as_int()
    return tuple(Rescaled(f"{name}.{suffix}", start, stop) for suffix in ("weight", *["bias"] * bool(bias)))


def choose_factor(
    pair: Pair, tokens: Floats, energy: Floats, source: Rows, scheme: Scheme, dialect: Dialect
) -> tuple[Trial, Trial]:
    """Return the trial without a factor, and the one of the least error.

    Args:
        pair: Whose factor.
        tokens: [n, K] inputs of the readers.
        energy: [K], mean squares of all inputs.
        source: The original's weights.
        scheme: What they are rounded to.
        dialect: Whose operators round the activations.
    """
    rows = sample_rows(pair.readers, source)
    plain = try_inputs(rows, tokens, Inputs(energy), scheme, dialect)
    loudest, largest = pair.tie(energy), pair.tie(np.abs(rows).max(0))
    factors = [_factor(loudest, largest, exponent) for exponent in EXPONENTS]
    trials = [try_inputs(rows, tokens, Inputs.divided(energy, factor), scheme, dialect) for factor in factors]
    best = min(trials, key=lambda trial: trial.error)
    return plain, best if best.error < plain.error * (CLEARLY if best.range_ else 1) else plain


def sample_rows(names: Sequence[str], source: Rows) -> Floats:
    """Return some rows of matrices that read the same value: [n, K]."""
    rows = np.concatenate([_sample(source, name) for name in names])
    return rows[: len(rows) // 2 * 2]  # INT4 of one dialect packs rows in pairs


def _sample(source: Rows, name: str) -> Floats:
    count = source.find(name).shape[0]
    starts = [0] if count <= RUNS * RUN else [run * (count - RUN) // (RUNS - 1) for run in range(RUNS)]
    length = count if count <= RUNS * RUN else RUN
    runs = [source.rows(name, start, start + length).reshape(length, -1) for start in starts]
    return np.concatenate(runs)


def _factor(energy: Floats, largest: Floats, exponent: float) -> Floats:
    """Return powers of two of at least one: dividing by them makes no activation overflow."""
    activation = np.sqrt(energy + DAMPING * DAMPING * max(energy.mean(), np.float32(1e-30)))
    weight = largest + DAMPING * max(largest.mean(), np.float32(1e-30))
    logs = np.log2(activation) * exponent - np.log2(weight) * (1 - exponent)
    logs = np.clip(np.rint(logs - logs.mean()), -REACH, REACH)
    factor: Floats = np.exp2(logs - logs.min()).astype(np.float32)
    return factor


def try_inputs(rows: Floats, tokens: Floats, inputs: Inputs, scheme: Scheme, dialect: Dialect) -> Trial:
    """Return the error of the products, of weights and activations as the engine has them.

    A fixed range is the one of least error on the tokens; of divided inputs it holds all, since others may come.

    Args:
        rows: [n, K] of the matrices.
        tokens: [m, K] that they are multiplied by.
        inputs: By what the rows are rounded.
        scheme: The precision.
        dialect: The engine's.
    """
    x, range_ = tokens if inputs.factor is None else tokens / inputs.factor, None
    want = tokens @ rows.T
    if isinstance(scheme, Int8Static):
        seen = Histogram()
        seen.add(x)
        range_ = least_squares(seen) if inputs.factor is None else min_max(seen)
        scheme = Int8Static(*range_)
    rounded = dequantize(scheme, dialect, encode(scheme, dialect, rows, inputs=inputs), rows.shape[1])
    x = round_activations(x, scheme) if DIALECTS[dialect].contrib else x
    error = np.square(x @ rounded.T - want, dtype=np.float64).sum() / max(float(np.square(want).sum()), 1e-30)
    return Trial(inputs.factor, float(error), range_)
