"""A metric of two models on the same samples: plain data that `validation` makes and `report` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeglm import manifest

N = TypeVar("N", float, NDArray[np.float64])
Verdict = Literal["pass", "fail", "unclear"]


@dataclass(frozen=True)
class Unit:
    """A metric's notation, and its drop: how much worse the artifact is.

    ``value`` and ``change`` are format specifications; ``relative`` is a drop in shares of the reference.
    """

    value: str
    change: str
    less_is_better: bool = False
    relative: bool = False

    def drop(self, reference: N, artifact: N) -> N:
        """Return the drop between two values, or element by element between two arrays."""
        difference = artifact - reference if self.less_is_better else reference - artifact
        return difference / reference if self.relative else difference


SHARE = Unit(".2%", ".2%")
THOUSANDTHS = Unit(".1f", ".1f", less_is_better=True)
PERPLEXITY = Unit(".2f", ".2%", less_is_better=True, relative=True)
# Of metrics that are no shares, by their names in a manifest.
UNITS = {"median_tap_error": THOUSANDTHS, "perplexity": PERPLEXITY}


@dataclass(frozen=True)
class Metric:
    """A metric of both models on the same samples.

    ``low`` and ``high`` bound the drop with 95%. ``needed`` is the number of samples that would tell, where these do
    not.
    """

    name: str
    unit: Unit
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
        """Whether the drop is within its limit at 95% confidence."""
        return self.verdict == "pass"

    @property
    def why(self) -> str:
        """The reason why it does not pass."""
        drop = f"{self.name} drops by {self.change(self.drop)}"
        if self.verdict == "fail":
            return f"{drop}, more than {self.change(self.limit)}"
        return f"{self.samples} samples are too few to tell: {drop}, but it may be {self.change(self.high)}"

    def value(self, value: float) -> str:
        """Return a value as it is shown: ``96.58%``."""
        return format(value, self.unit.value)

    def change(self, change: float) -> str:
        """Return a drop, a bound of it or its limit as it is shown."""
        return format(change, self.unit.change)

    @property
    def sealed(self) -> manifest.Metric:
        """The metric as a manifest keeps it."""
        interval, drop = (self.low, self.high), self.drop
        return manifest.Metric(
            self.name, self.samples, self.reference, self.artifact, drop, interval, self.limit, passed=self.passed
        )
