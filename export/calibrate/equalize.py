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
from edgeglm.export.model import Rows
from edgeglm.export.quantize.feedback import Inputs
from edgeglm.export.quantize.rounded import round_activations
from edgeglm.export.quantize.rounding import DAMPING, Floats
from edgeglm.export.quantize.schemes import Scheme
from edgeglm.export.quantize.storage import dequantize, encode

# How much of a channel's size moves into the weights: the rest of the way evens out the weights' own columns.
EXPONENTS = (0.25, 0.5, 0.75, 1.0)
# A factor is within so many powers of two of the others' mean: a channel that calibration never showed may come.
REACH = 10
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
    """A value between weights: the rows that make it, and the matrices that alone read it."""

    makers: tuple[Rescaled, ...]
    readers: tuple[str, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all of them."""
        return (*(maker.tensor for maker in self.makers), *self.readers)


@dataclass(frozen=True)
class Trial:
    """A factor [K] of a pair, or none, and the squared error of the readers' outputs relative to those."""

    factor: Floats | None
    error: float


def find_pairs(graph: ir.Graph) -> Iterator[Pair]:
    """Yield the values of a segment of the portable dialect that can be rescaled."""
    outputs = set(graph.outputs)
    for node in graph:
        value = node.outputs[0]
        readers = [use.node for use in value.uses()]
        if value in outputs or not readers or any(reader.op_type != "Linear" for reader in readers):
            continue
        if makers := _norm(node) if node.op_type in ("RMSNorm", "LayerNorm") else _product(node):
            yield Pair(makers, tuple(f"{name}.weight" for reader in readers for name in _names(reader)))


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
    (name,), bias = _names(node), node.attributes["bias"].as_int()
    return tuple(Rescaled(f"{name}.{suffix}", start, start + size) for suffix in ("weight", *["bias"] * bool(bias)))


def choose_factor(
    readers: Sequence[str], tokens: Floats, energy: Floats, source: Rows, scheme: Scheme, dialect: Dialect
) -> tuple[Trial, Trial]:
    """Return the trial without a factor, and the one of the least error.

    Args:
        readers: The matrices.
        tokens: [n, K] inputs of theirs.
        energy: [K], mean squares of all inputs.
        source: The original's weights.
        scheme: What they are rounded to.
        dialect: Whose operators round the activations.
    """
    rows = np.concatenate([_sample(source, name) for name in readers])
    rows = rows[: len(rows) // 2 * 2]  # INT4 of one dialect packs rows in pairs
    plain = Trial(None, _error(rows, tokens, energy, None, scheme, dialect))
    largest = np.abs(rows).max(0)
    trials = [plain]
    for exponent in EXPONENTS:
        factor = _factor(energy, largest, exponent)
        trials.append(Trial(factor, _error(rows, tokens, energy, factor, scheme, dialect)))
    return plain, min(trials, key=lambda trial: trial.error)


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


def _error(
    rows: Floats, tokens: Floats, energy: Floats, factor: Floats | None, scheme: Scheme, dialect: Dialect
) -> float:
    """Return the squared error of the products, of weights and activations as the engine has them."""
    inputs = Inputs.divided(energy, factor)
    stored = encode(scheme, dialect, rows, inputs=inputs)
    rounded = dequantize(scheme, dialect, stored, rows.shape[1])
    x = tokens if factor is None else tokens / factor
    x = round_activations(x, scheme) if DIALECTS[dialect].contrib else x
    want = tokens @ rows.T
    return float(np.square(x @ rounded.T - want, dtype=np.float64).sum() / max(float(np.square(want).sum()), 1e-30))
