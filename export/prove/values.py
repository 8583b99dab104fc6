"""The values that flow through a module while it is proven, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Values = dict[str, NDArray[Any]]
OUT = "_out"
# What an additive mask hides a token with: FP16 holds it, and no softmax lets it through.
HIDDEN = -1e4


def decoder_inputs(hidden: NDArray[np.float32], position_ids: NDArray[np.int64]) -> Values:
    """Return all that a decoder of the portable dialect takes, for one prompt of embeddings (1, length, hidden)."""
    length = hidden.shape[1]
    return {
        "hidden": hidden,
        "position_ids": position_ids,
        "mask": np.triu(np.full((1, 1, length, length), HIDDEN, np.float32), 1),
    }


def feeds(inputs: Sequence[ir.Value], values: Mapping[str, NDArray[Any]]) -> Values:
    """Return what the inputs of a graph are fed, in their types: `values` by name, and an empty key/value state."""
    return {f"{value.name}": _feed(value, values) for value in inputs}


def _feed(value: ir.Value, values: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    assert value.dtype is not None
    dtype, name = value.dtype.numpy(), f"{value.name}"
    if name in values:
        return values[name].astype(dtype, copy=False)
    assert value.shape is not None
    return np.zeros([size if isinstance(size, int) else 0 for size in value.shape], dtype)


def passed_on(outputs: Mapping[str, NDArray[Any]]) -> Values:
    """Return what a segment gives to the next, by the names of its inputs."""
    return {name.removesuffix(OUT): array for name, array in outputs.items() if not name.startswith("present_")}


def relative_error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Return the relative L2 error; infinite where anything is not finite."""
    difference = got.astype(np.float64) - want.astype(np.float64)
    error = float(np.linalg.norm(difference) / max(float(np.linalg.norm(want.astype(np.float64))), 1e-30))
    return error if np.isfinite(error) else float("inf")


def two_digits(error: float) -> float:
    """Round to two significant digits, which a repeated run gives again."""
    return float(f"{error:.1e}")


def divergence(original: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the mean Kullback-Leibler divergence of two arrays of logits [..., vocabulary], in nats."""
    p, q = _log_softmax(original), _log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
