"""Check what a module for an NPU takes, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from edgeglm.export.prepare.types import Opened
from edgeglm.export.prove.probes import Example
from edgeglm.export.targets.qnn.calibrate import npu_samples


def check(opened: Opened, examples: Sequence[Example]) -> None:
    """Raise UnsupportedError where the compiler is not installed, UsageError where there are no samples."""
    npu_samples(opened, examples)
