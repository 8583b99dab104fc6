"""Prove a decoder's graph for several sequences: each gets the logits that the graph for one gives it alone."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import AccuracyError
from edgeglm.export.graph.slots import SLOTS
from edgeglm.export.prepare.types import PreparedModule
from edgeglm.export.prove.onnx_run import check_loads
from edgeglm.export.prove.prover import ENGINE_BYTES
from edgeglm.export.prove.values import relative_error, two_digits
from edgeglm.export.write.writer import BundleWriter
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.engines.ort.engine import Decoder
from edgeglm.runtimes.engines.ort.slots import SlotDecoder

# How many tokens each slot gets, step after step: alone, beside others, none at all, and a piece beside single ones.
FILLINGS = ((5, 0, 0, 0), (1, 7, 0, 2), (0, 1, 30, 1), (1, 1, 1, 3), (2, 0, 1, 1))
# INT4's products and keys in fp16 are rounded, and a number between two codes may go either way in a product of more
# rows.
LIMITS = {"fp32": 1e-5}
ROUNDED = 0.2


def prove_slots(module: PreparedModule, writer: BundleWriter) -> float | None:
    """Return the largest relative error of any sequence's logits; None for a larger module, which is only opened.

    Raises:
        AccuracyError: It is larger than the precision explains.
    """
    if module.layout.nbytes > ENGINE_BYTES:
        check_loads(writer.path(module.slots_file))
        return None
    threads = len(os.sched_getaffinity(0))
    one = Decoder(writer.path(module.file), threads, 1)
    several = SlotDecoder(writer.path(module.slots_file), threads, SLOTS)
    try:
        error = largest_error(one, several)
    finally:
        one.close()
        several.close()
    limit = LIMITS.get(module.choice.stated, ROUNDED) if module.choice.kv == "fp32" else ROUNDED
    if error > limit:
        why = f"sequences get logits in it that are {error:.2g} away from those that they get alone"
        raise AccuracyError(module.slots_file, why, "this is a bug in edgeglm, please report it")
    return two_digits(error)


def largest_error(one: Decoder, several: SlotDecoder) -> float:
    """Return how far the logits of any sequence are from those that it gets alone, relative to them."""
    axes, width = one.inputs["position_ids"][0], one.inputs["hidden"][-1]
    random, error = np.random.default_rng(0), 0.0
    slots, fed = [several.slot(index, 1) for index in range(SLOTS)], [list[NDArray[np.float32]]() for _ in range(SLOTS)]
    for counts in FILLINGS:
        asked = {}
        for index, count in enumerate(counts):
            if count:
                fed[index].append(random.standard_normal((1, count, width), np.float32))
                asked[index] = Asked(fed[index][-1], _positions(axes, slots[index].length, count), 1)
        for index, logits in several.step(asked).items():
            error = max(error, relative_error(logits, _alone(one, axes, fed[index])))
    return error


def _alone(one: Decoder, axes: int, fed: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the last logits of one sequence that was fed in the same pieces."""
    one.truncate(0)
    return [one.step(hidden, _positions(axes, one.length, hidden.shape[1])) for hidden in fed][-1]


def _positions(axes: int, start: int, count: int) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(start, start + count), (axes, 1, count))
