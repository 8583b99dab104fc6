"""A module computed in fp32 with numpy: a portable graph whose placeholders ask for their weights piece by piece.

Fed from the checkpoint it is the original; fed from an emitted file, what was stored of it. No engine, no fused
operator and no copy of a model's code is in it, and memory is a piece of one matrix and the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgeglm.export.model import Rows, rotary_order

Floats = NDArray[np.float32]
Run = Callable[..., tuple[Floats, ...]]
DOMAIN = "edgeglm"
CHUNK_BYTES = 4 << 20  # of fp32 rows at once: with fewer, a product of many tokens takes a quarter longer


class Weights(Protocol):
    """A source of a module's weights, by the checkpoint's names."""

    def product(self, x: Floats, weight: str) -> Floats:
        """Return ``x W^T`` over the last axis."""

    def vector(self, name: str) -> Floats:
        """Return a bias or norm."""


class OriginalWeights:
    """The checkpoint's own."""

    def __init__(self, source: Rows) -> None:
        self.source = source

    def product(self, x: Floats, weight: str) -> Floats:
        """Multiply by chunks of rows."""
        count, *columns = self.source.find(weight).shape
        step = max(1, CHUNK_BYTES // (4 * int(np.prod(columns))))
        y = np.empty((*x.shape[:-1], count), np.float32)
        for start in range(0, count, step):
            stop = min(start + step, count)
            y[..., start:stop] = x @ self.source.rows(weight, start, stop).reshape(stop - start, -1).T
        return y

    def vector(self, name: str) -> Floats:
        """Read whole."""
        return self.source.rows(name)


class _Placeholder(OpRun):
    """A node of domain ``edgeglm``, whose attributes the evaluator makes fields of."""

    op_domain = DOMAIN
    weights: list[str]
    bias: int
    epsilon: float
    split_rotary: int
    head_dim: int


class Sigmoid(OpRun):
    """The standard operator, in a tenth of the time that the evaluator's own takes: it picks by the sign."""

    op_domain = ""

    def _run(self, x: Floats) -> tuple[Floats]:
        with np.errstate(over="ignore"):  # of an infinite power, the result is the right zero
            power: Floats = np.exp(-x)
            return (np.reciprocal(power + np.float32(1)),)


class _Linear(_Placeholder):
    """The placeholder of a product with matrices, which each token has for itself."""


class Segment:
    """A segment of the portable dialect that was not lowered, to be run more than once."""

    def __init__(self, segment: ir.Model, weights: Weights) -> None:
        self._evaluator = ReferenceEvaluator(ir.to_proto(segment), new_ops=_operators(weights))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        return dict(zip(self._evaluator.output_names, self._evaluator.run(None, dict(feeds)), strict=True))

    def run_together(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        """Return the outputs for several inputs; a weight is read once, and multiplies the tokens of all of them.

        A value ends with its last reader, so that memory holds few of so many.
        """
        nodes: Sequence[Any] = self._evaluator.rt_nodes_
        outputs = self._evaluator.output_names
        states: list[dict[str, Any]] = [{"": None, **self._evaluator.rt_inits_, **feed} for feed in feeds]
        for node, read in zip(nodes, _last_reads(nodes, outputs), strict=True):
            inputs = [[state[name] for name in node.input] for state in states]
            joined = _run_joined if isinstance(node, _Linear) else _run_each
            for state, result in zip(states, joined(node.run, inputs), strict=True):
                state.update(zip(node.output, result, strict=False))
                for name in read:
                    state.pop(name, None)
            del inputs, result
        return [{name: state[name] for name in outputs} for state in states]

    def run_all(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return everything that is computed, outputs and what lies before them, by name."""
        found: dict[str, NDArray[Any]] = self._evaluator.run(None, dict(feeds), intermediate=True)  # type: ignore[assignment]
        return {name: array for name, array in found.items() if name and isinstance(array, np.ndarray)}


def run_segment(segment: ir.Model, weights: Weights, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a segment once; outputs by name."""
    return Segment(segment, weights).run(feeds)


def _last_reads(nodes: Sequence[Any], kept: Iterable[str]) -> list[list[str]]:
    """Return by node the values that nothing reads behind it, other than those that are kept."""
    last = {name: index for index, node in enumerate(nodes) for name in (*node.input, *node.output)}
    read: list[list[str]] = [[] for _ in nodes]
    for name in last.keys() - {"", *kept}:
        read[last[name]].append(name)
    return read


def _run_each(run: Run, inputs: Iterable[Sequence[Floats]]) -> list[tuple[Floats, ...]]:
    """Compute one input after the other."""
    return [run(*arrays) for arrays in inputs]


def _run_joined(run: Run, inputs: Iterable[Sequence[Floats]]) -> list[tuple[Floats, ...]]:
    """Multiply the tokens of several inputs at once."""
    arrays = [x for (x,) in inputs]
    (y,) = run(np.concatenate([x.reshape(-1, x.shape[-1]) for x in arrays]))
    stops = np.cumsum([x.size // x.shape[-1] for x in arrays])[:-1]
    return [(part.reshape(*x.shape[:-1], -1),) for x, part in zip(arrays, np.split(y, stops), strict=True)]


def _operators(source: Weights) -> list[type[OpRun]]:
    """Return the placeholders as operators that read from `source`."""

    def vectors(names: list[str], suffix: str) -> Floats:
        return np.concatenate([source.vector(f"{name}.{suffix}") for name in names])

    class Linear(_Linear):
        def _run(self, x: Floats, **_: object) -> tuple[Floats]:
            parts = [source.product(x, f"{name}.weight") for name in self.weights]
            y: Floats = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            if self.bias:
                y = y + vectors(self.weights, "bias")
            if self.split_rotary:
                order = rotary_order(self.split_rotary, self.head_dim)
                y = y.reshape(*y.shape[:-1], -1, self.head_dim)[..., order].reshape(y.shape)
            return (y,)

    class RMSNorm(_Placeholder):
        def _run(self, x: Floats, **_: object) -> tuple[Floats]:
            mean = np.mean(np.square(x), axis=-1, keepdims=True)
            return (x / np.sqrt(mean + np.float32(self.epsilon)) * vectors(self.weights, "weight"),)

    class LayerNorm(_Placeholder):
        def _run(self, x: Floats, **_: object) -> tuple[Floats]:
            centred = x - x.mean(axis=-1, keepdims=True)
            deviation = np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + np.float32(self.epsilon))
            return (centred / deviation * vectors(self.weights, "weight") + vectors(self.weights, "bias"),)

    return [Linear, RMSNorm, LayerNorm, Sigmoid]
