"""Run a walk of the original for a compression, and tell how far it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeglm.errors import UsageError
from edgeglm.export.calibrate.calibrator import samples_bytes
from edgeglm.export.calibrate.walk import Walk, Watch
from edgeglm.export.predict.peaks import EXPORT_BYTES, TRACE_BYTES, check_peak
from edgeglm.export.predict.torch_build import with_torch
from edgeglm.export.prepare.types import Opened
from edgeglm.export.prove.probes import Example
from edgeglm.export.requests import Progress, Show
from edgeglm.roles import ModuleName


class Shown:
    """A listener that tells how far a walk is, before the one that learns.

    Args:
        listener: The one that learns.
        total: The number of segments.
        show: Is told.
    """

    def __init__(self, listener: Watch, total: int, show: Show) -> None:
        self.listener, self.show = listener, show
        self.total, self.done = total, 0

    def begin(self, module: ModuleName, part: str, graph: ir.Graph) -> None:
        """Start with a segment."""
        self.show(Progress("choosing", self.done / self.total))
        self.listener.begin(module, part, graph)

    def end(self) -> None:
        """End it."""
        self.done += 1
        self.listener.end()


def run_walk(walk: Walk) -> None:
    """Pass all prompts through the model.

    Raises:
        UsageError: Something in the model is not finite on the samples.
        OSError: A listener cannot write.
    """
    try:
        with np.errstate(all="ignore"):
            for _ in walk.logits():
                pass
    except ValueError as error:
        raise UsageError("--calibration", str(error), "check the model and the samples") from error


def walk_bytes(opened: Opened, examples: Sequence[Example], budget: int) -> int:
    """Return the memory of a walk, without what its listener keeps. Raises BudgetError where it does not fit."""
    needed = EXPORT_BYTES + samples_bytes(opened, examples)
    check_peak(max(needed, with_torch(TRACE_BYTES)), budget, f"to compress {opened.request.name}")
    return needed


def no_room(weights: Sequence[str], what: str, instead: str) -> list[str]:
    """Return a note on matrices whose covariance ``--max-ram`` has no room for; none where it has.

    Args:
        weights: Their names.
        what: What there is no room for: ``to refit``.
        instead: What becomes of them.
    """
    if not weights:
        return []
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    return [f"--max-ram has no room {what} {weights[0]}{more}: {instead}"]
