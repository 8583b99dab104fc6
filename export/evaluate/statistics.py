"""Drops of a metric between two models on the same samples, and how sure they are: the paired bootstrap.

Samples are drawn with replacement, each with both models' results, and the drop is computed for every draw; its middle
95% is the interval (Efron & Tibshirani, An Introduction to the Bootstrap, section 13.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.metric import Metric, Unit

Values = NDArray[np.float64]
RESAMPLES = 2000
# What never happened in n samples happens with 95% certainty in less than 3/n of them (Hanley & Lippman-Hand, 1983):
# two models that agree on every sample may still differ.
RULE_OF_THREE = 3.0


def compare(
    name: str,
    unit: Unit,
    reference: Values,
    artifact: Values,
    limit: float,
    of: Callable[[Values], Values],
    *,
    unseen: float = 0.0,
) -> Metric:
    """Compare results per sample.

    Args:
        name: The metric's.
        unit: Says what a drop is.
        reference: One value a sample.
        artifact: The same samples.
        limit: The largest drop that passes.
        of: The metric of values along the last axis, `mean` or `median`.
        unseen: What the drop may be that no sample shows: of a share, `RULE_OF_THREE` over their number; the bound
            is then at most 1, which is all that a share can drop.
    """
    count = len(reference)
    if not count:
        return Metric(name, unit, 0, 0.0, 0.0, 0.0, 0.0, 0.0, limit)
    picks = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    drops = unit.drop(of(reference[picks]), of(artifact[picks]))
    both = float(of(reference)), float(of(artifact))
    drop = unit.drop(*both)
    low, high = (float(bound) for bound in np.quantile(drops, (0.025, 0.975)))
    high, needed = max(high, drop + unseen), None
    if drop <= limit < high:
        # The interval shrinks with the root of the number of samples, what was not seen with the number.
        spread = (high - drop) / max(limit - drop, 1e-9)
        needed = min(10**9, math.ceil(count * (spread if high == drop + unseen else spread**2)))
    return Metric(name, unit, count, *both, drop, low, min(high, 1.0) if unseen else high, limit, needed)


def mean(values: Values) -> Values:
    """Return the mean along the last axis."""
    return np.asarray(values.mean(-1))


def median(values: Values) -> Values:
    """Return the median along the last axis."""
    return np.asarray(np.median(values, axis=-1))
