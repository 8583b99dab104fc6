"""Drops of a metric between two models on the same samples, and how sure they are: the paired bootstrap.

Samples are drawn with replacement, each with both models' results, and the drop is computed for every draw; its middle
95% is the interval (Efron & Tibshirani, An Introduction to the Bootstrap, section 13.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Verdict = Literal["pass", "fail", "unclear"]
RESAMPLES = 2000
# What never happened in n samples happens with 95% certainty in less than 3/n of them (Hanley & Lippman-Hand, 1983):
# two models that agree on every sample may still differ.
RULE_OF_THREE = 3.0


@dataclass(frozen=True)
class Metric:
    """A metric of both models on the same samples.

    ``drop`` is how much worse the artifact is, in the metric's unit; ``low`` and ``high`` bound it with 95%. ``needed``
    is the number of samples that would tell, where these do not.
    """

    name: str
    samples: int
    reference: float
    artifact: float
    drop: float
    low: float
    high: float
    limit: float
    needed: int | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the drop is within its limit, or the samples are too few to say so."""
        if self.drop > self.limit:
            return "fail"
        return "pass" if self.high <= self.limit else "unclear"

    @property
    def passed(self) -> bool:
        """Whether the drop is surely within its limit."""
        return self.verdict == "pass"


def compare(
    name: str,
    reference: Values,
    artifact: Values,
    limit: float,
    of: Callable[[Values], Values],
    *,
    sign: int,
    unseen_share: float = 0.0,
) -> Metric:
    """Compare results per sample.

    Args:
        name: The metric's.
        reference: One value a sample.
        artifact: The same samples.
        limit: The largest drop that passes.
        of: The metric of values along the last axis, `numpy.mean` or `numpy.median`.
        sign: 1 where more is better, -1 where less is.
        unseen_share: What the drop may be that no sample shows, times their number: `RULE_OF_THREE` for a share.
    """
    count = len(reference)
    if not count:
        return Metric(name, 0, 0.0, 0.0, 0.0, 0.0, 0.0, limit)
    picks = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    drops = sign * (of(reference[picks]) - of(artifact[picks]))
    both = float(of(reference)), float(of(artifact))
    drop, unseen = sign * (both[0] - both[1]), unseen_share / count
    low, high = (float(bound) for bound in np.quantile(drops, (0.025, 0.975)))
    high = max(high, drop + unseen)
    needed = None
    if drop <= limit < high:
        # The interval shrinks with the root of the number of samples, what was not seen with the number.
        room = max(limit - drop, 1e-9)
        spread = (high - drop) / room
        wanted = unseen_share / room if high == drop + unseen else count * spread**2
        needed = min(10**9, math.ceil(wanted))
    return Metric(name, count, *both, drop, low, high, limit, needed)
