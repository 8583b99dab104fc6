"""Run a walk of the original for a compression, and tell how far it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeglm.errors import UsageError
from edgeglm.export.calibrate.walk import Walk, Watch
from edgeglm.export.requests import Progress, Show
from edgeglm.export.write.disk import explained
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


def run_walk(walk: Walk, work: Path) -> None:
    """Pass all prompts through the model.

    Args:
        walk: It.
        work: Where its listener writes.

    Raises:
        UsageError: Something in the model is not finite on the samples.
        BudgetError: The disk is full.
    """
    try:
        with np.errstate(all="ignore"), explained(work, work):
            for _ in walk.logits():
                pass
    except ValueError as error:
        raise UsageError("--calibration", str(error), "check the model and the samples") from error
