"""The error of what was emitted, against the user's own file on the samples."""

from __future__ import annotations

from pathlib import Path

from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export.foreign.graph_plan import Plan
from edgeglm.export.prove.onnx_run import run_file
from edgeglm.export.prove.values import relative_error, two_digits

MAX_ERROR = 1.0  # as a module's


def measure(plan: Plan, file: Path) -> float:
    """Return the largest relative error of a floating-point output over the samples, against the original."""
    worst = 0.0
    for sample in plan.samples:
        try:
            want = run_file(plan.request.file, sample)
        except Exception as error:
            why = f"ONNX Runtime cannot run it on the samples: {str(error).splitlines()[0]}"
            raise UnsupportedError(plan.request.file, why, "give samples that it takes by --calibration") from error
        try:
            got = run_file(file, sample)
        except Exception as error:
            why = f"ONNX Runtime cannot run it in {plan.precision}: {str(error).splitlines()[0]}"
            raise UnsupportedError(plan.request.file, why, "export it in another precision") from error
        for name, array in want.items():
            if array.dtype.kind == "f" and array.size:
                worst = max(worst, relative_error(got[name], array))
    if worst > MAX_ERROR:
        why = f"its output is {worst:.2g} away from the original's, relative to it"
        raise AccuracyError(plan.request.file, why, f"use a higher precision than {plan.precision}")
    return two_digits(worst)
