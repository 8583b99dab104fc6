"""The errors that a calibration measures of products with rounded weights, and their means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgeglm.roles import ModuleName


@dataclass(frozen=True)
class ProductErrors:
    """The relative errors of the products that read a value, in the precision of its part.

    Args:
        module: The module.
        part: Its part.
        precision: What the part's matrices are rounded to.
        plain: Each weight rounded to its nearest code.
        equalized: With scales moved; the same where none are.
        fed_back: With rounding errors fed back too; the same where none are.
    """

    module: ModuleName
    part: str
    precision: str
    plain: float
    equalized: float
    fed_back: float


def mean_errors(errors: Iterable[ProductErrors]) -> dict[str, float]:
    """Return the root of the mean square of each kind of error; what changes nothing is left out."""
    found = list(errors)
    if not found:
        return {}
    kinds = ("plain", "equalized", "fed_back")
    means = [float(np.sqrt(np.mean([getattr(error, kind) ** 2 for error in found]))) for kind in kinds]
    named = zip(kinds, means, [-1.0, *means], strict=False)
    return {kind: float(f"{mean:.4g}") for kind, mean, before in named if mean != before}
