"""Check what a TFLite module for an NPU takes, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.prepare.types import Opened
from edgeglm.export.targets.litert.plugin import find_tools
from edgeglm.export.targets.litert.sizes import CALIBRATE_BYTES, FILE_BYTES, all_scores, part_sizes
from edgeglm.roles import encoder_of
from edgeglm.units import format_size


def check(opened: Opened, examples: Sequence[object]) -> None:
    """Check what a TFLite module for an NPU takes, before anything is made of it.

    Raises:
        UnsupportedError: The compiler is not installed, or the ranges of the module cannot be taken.
        UsageError: There are no samples to take them from.
    """
    if not any(choice.is_converted and choice.kind.integers for choice in opened.choices):
        return
    find_tools()
    scores, weights = all_scores(opened), sum(part_sizes(opened, encoder_of("image")).values())
    if scores > CALIBRATE_BYTES or weights > FILE_BYTES:
        why = (
            f"its ranges are taken of the whole tower at once, which has {format_size(weights)} of weights in fp32 "
            f"and {format_size(scores)} of attention; at most {format_size(FILE_BYTES)} and "
            f"{format_size(CALIBRATE_BYTES)} are possible"
        )
        raise UnsupportedError("vision as TFLite for the NPU", why, "leave vision=tflite out")
    if not examples and not opened.request.shipped:
        why = f"{opened.request.profile.name} has vision on its NPU, which takes ranges of activations"
        raise UsageError("--calibration", why, "give samples by --calibration FILE")
